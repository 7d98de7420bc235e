import numpy as np
import pytest
from fakes import FACTS, FakeEngine, make_manifest
from reflectrt.runtime.cache import BUCKET, KVCache
from reflectrt.runtime.errors import LimitError, ResourceError
from reflectrt.runtime.memory import cache_bytes
from reflectrt.runtime.stream import Stream


def rows(stream: Stream, name: str) -> list[float]:
    """The token ids that a cache buffer holds."""
    return stream.engine.download(stream.cache.inputs[name])[0, 0, : stream.cache.length, 0].tolist()


def test_capacity_comes_in_buckets() -> None:
    cache = KVCache(FakeEngine(), FACTS, 1)
    assert cache.capacity == BUCKET
    cache.reserve(BUCKET)
    assert cache.capacity == BUCKET
    cache.reserve(BUCKET + 1)
    assert cache.capacity == 2 * BUCKET


def test_every_layer_has_keys_and_values_of_the_capacity() -> None:
    cache = KVCache(FakeEngine(), FACTS, 10)
    shapes = {name: buffer.shape for name, buffer in cache.inputs.items()}
    assert shapes == dict.fromkeys(("key_cache.0", "value_cache.0", "key_cache.1", "value_cache.1"), (1, 1, BUCKET, 2))


def test_outputs_are_the_same_buffers_by_their_output_names() -> None:
    cache = KVCache(FakeEngine(), FACTS, 10)
    assert cache.outputs["key_cache_out.1"] is cache.inputs["key_cache.1"]
    assert len(cache.outputs) == 4


def test_growth_keeps_the_rows_that_are_filled() -> None:
    stream = Stream(FakeEngine(), make_manifest(), 1)
    fed = list(range(1, 41)) * 12
    for start in range(0, len(fed), 100):
        stream.feed_tokens(fed[start : start + 100])
    assert stream.cache.capacity == 2 * BUCKET
    for name in stream.cache.inputs:
        assert rows(stream, name) == fed


def test_rows_are_reused_after_a_roll_back() -> None:
    stream = Stream(FakeEngine(), make_manifest(), 100)
    stream.feed_tokens([1, 2, 3])
    mark = stream.mark()
    stream.feed_tokens([4, 5])
    stream.roll_back(mark)
    stream.feed_tokens([6])
    assert rows(stream, "key_cache.0") == [1, 2, 3, 6]
    assert (stream.position, stream.cache.capacity) == (4, BUCKET)


def test_too_little_memory_is_refused_with_numbers_before_anything_is_taken() -> None:
    engine = FakeEngine(free=cache_bytes(FACTS, 300, 4))
    with pytest.raises(ResourceError, match=r"context of 512 tokens needs .* \(room for 300 tokens\)"):
        KVCache(engine, FACTS, 400)
    cache = KVCache(engine, FACTS, 200)
    cache.length = 200
    before = dict(cache.inputs)
    with pytest.raises(ResourceError, match="context of 512 tokens"):
        cache.reserve(100)
    assert (cache.capacity, cache.length) == (BUCKET, 200)
    assert cache.inputs == before


def test_long_text_goes_in_chunks_whose_positions_and_rows_go_on() -> None:
    engine = FakeEngine()
    stream = Stream(engine, make_manifest(), 3000)
    ids = [i % 60 for i in range(2 * FakeEngine.chunk_tokens + 7)]
    hidden = stream.feed_tokens(ids)
    runs = engine.of("decoder")
    assert [run["embeddings"].shape[1] for run in runs] == [FakeEngine.chunk_tokens, FakeEngine.chunk_tokens, 7]
    assert [int(run["past_length"][0]) for run in runs] == [0, FakeEngine.chunk_tokens, 2 * FakeEngine.chunk_tokens]
    positions = np.concatenate([run["positions"] for run in runs], axis=1)
    np.testing.assert_array_equal(positions, np.tile(np.arange(len(ids)), (3, 1)))
    assert engine.download(hidden)[0, 0, 0] == ids[-1]
    assert rows(stream, "value_cache.1") == ids


def test_a_visual_segment_holds_its_start_until_it_ends() -> None:
    engine = FakeEngine()
    stream = Stream(engine, make_manifest(), 100)
    stream.feed_tokens([1, 2, 3])
    grid = engine.upload(np.ones((2, 2, 4), np.float32))
    stream.feed_visual(grid, (2, 2, 4), 2.0, first=0)
    stream.feed_visual(grid, (2, 2, 4), 2.0, first=2)
    assert stream.position == 3
    stream.end_visual((4, 2, 4), 2.0)
    assert stream.position == 3 + 6 + 1
    times = [run["positions"][0].tolist() for run in engine.of("decoder")[1:]]
    assert times == [[3, 3, 5, 5], [7, 7, 9, 9]]


def test_held_text_goes_in_with_what_is_fed_next() -> None:
    engine = FakeEngine()
    stream = Stream(engine, make_manifest(), 100)
    stream.hold([1, 2])
    stream.hold([3])
    stream.feed_visual(engine.upload(np.full((1, 2, 4), 9, np.float32)), (1, 2, 4), 2.0, first=0)
    stream.end_visual((1, 2, 4), 2.0)
    stream.hold([4])
    mark = stream.mark()
    assert (mark.length, mark.tokens) == (5, 6)
    for _ in range(2):  # the mark brings held text back
        stream.feed_tokens([5])
        assert rows(stream, "value_cache.1") == [1, 2, 3, 9, 9, 4, 5]
        stream.roll_back(mark)
    first, second, third = (run["positions"].tolist() for run in engine.of("decoder"))
    assert first == [[0, 1, 2, 3, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4]]
    assert second == third == [[5, 6]] * 3


def test_a_full_context_is_refused_with_its_size_and_the_settings() -> None:
    stream = Stream(FakeEngine(), make_manifest(), 100)
    stream.feed_tokens([1] * 3999)
    stream.feed_tokens([1])
    with pytest.raises(LimitError, match=r"holds 4000 tokens .*--max-new-tokens"):
        stream.feed_tokens([1])
