"""A corpus in a bucket that fails half of all requests is packed and read all the same."""

from __future__ import annotations

import numpy as np

from tests.kit.bucket import HAVE_BUCKET, serve_flaky_bucket
from tidemill.data.corpus import open_stream, prepare_corpus
from tidemill.plan.batch import Slot
from tidemill.spec.training import TextSpec
from tidemill.storage import locate, publish

if HAVE_BUCKET:

    def test_half_of_all_requests_may_fail() -> None:
        with serve_flaky_bucket("tide", rate=0) as bucket:
            texts = locate(bucket.uri("texts"))
            for number in range(20):
                publish(texts / f"{number}.txt", f"the tide is {number} ".encode() * 40)
            spec = TextSpec(paths=[bucket.uri("texts")], held_out=0.2)
            steady = _samples(spec, bucket.uri("steady"))
            bucket.rate = 0.5
            assert np.array_equal(_samples(spec, bucket.uri("flaky")), steady)
            assert sum(bucket.failed.values()) > 10

    def _samples(spec: TextSpec, storage: str) -> np.ndarray:
        corpus = prepare_corpus(spec, locate(storage), sequence=16)
        stream = open_stream(spec, corpus, seed=1, sequence=16, split="train")
        return np.concatenate(
            [stream.take(8 * step, Slot(start=0, size=8)).inputs for step in range(4)]
        )
