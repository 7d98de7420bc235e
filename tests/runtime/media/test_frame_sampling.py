import numpy as np
import pytest
from films import film, number_of, numbers, opened, pictures
from reflectrt.runtime.errors import MediaError
from reflectrt.runtime.media import VideoBudget
from reflectrt.runtime.media.sampling import Timeline, chosen_frames, frame_count


def even_timeline(total: int, rate: float) -> Timeline:
    return Timeline(np.arange(total) / rate)


@pytest.mark.parametrize("rate", [5, 23.976, 25, 29.97, 60])
@pytest.mark.parametrize("total", [2, 3, 24, 100, 1001, 20_000])
@pytest.mark.parametrize("fps", [0.5, 2, 7, 30])
def test_an_even_number_of_about_fps_frames_a_second_is_taken(total: int, rate: float, fps: float) -> None:
    wanted = min(round(total / rate * fps), 64, total)
    count = frame_count(even_timeline(total, rate), VideoBudget(fps=fps, max_frames=64))
    assert count == (wanted // 2 * 2 if wanted >= 2 else 1)
    chosen = chosen_frames(even_timeline(total, rate), count)
    np.testing.assert_array_equal(chosen, np.round(np.linspace(0, total - 1, count)))


def test_one_frame_makes_one_grid_of_it_twice(tmp_path) -> None:
    medium = opened(film(tmp_path / "one.mp4", 1))
    assert (medium.frames, medium.grid[0]) == (1, 1)
    first, second = pictures(medium)
    np.testing.assert_array_equal(first, second)
    assert medium.second_per_grid == 0


def test_an_odd_last_frame_is_repeated(tmp_path) -> None:
    film(tmp_path / "three.mp4", 3)
    medium = opened(tmp_path / "three.mp4")
    assert (medium.frames, medium.grid[0], numbers(medium)) == (2, 1, [0, 2])


def test_a_video_under_half_a_second_gives_one_frame(tmp_path) -> None:
    medium = opened(film(tmp_path / "blink.mp4", 8), fps=2)
    assert (medium.frames, numbers(medium)) == (1, [0, 0])


def test_a_variable_rate_is_sampled_by_time(tmp_path) -> None:
    # 20 frames in the first 0.4 s, then 9 that stand for a second each
    times = [*range(0, 400, 20), *range(400, 9400, 1000)]
    path = film(tmp_path / "variable.mkv", len(times), times_ms=times)
    medium = opened(path, max_frames=10)
    at = np.linspace(times[0], times[-1], 10)
    assert numbers(medium) == [max(i for i, t in enumerate(times) if t <= x + 1e-3) for x in at]
    assert medium.second_per_grid == pytest.approx(2 * 8.4 / 9)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"start_s": 0.5}, [13, 39]),
        ({"end_s": 0.5}, [0, 12]),
        ({"start_s": 0.4, "end_s": 0.8}, [10, 20]),
        ({"start_s": 0.2, "end_s": 0.2}, [5, 5]),
        ({"end_s": 99.0}, [0, 39]),
    ],
)
def test_a_cut_holds_the_frames_within_it(tmp_path, cut: dict[str, float], expected: list[int]) -> None:
    assert numbers(opened(film(tmp_path / "film.mp4"), max_frames=2, **cut)) == expected


def test_an_empty_cut_says_how_long_the_video_is(tmp_path) -> None:
    with pytest.raises(MediaError, match=r"no frame between 2 s and its end; it is 1\.56 s long"):
        opened(film(tmp_path / "film.mp4"), start_s=2.0)


def test_chunks_do_not_change_what_is_read(tmp_path) -> None:
    path = film(tmp_path / "film.mp4", 22)
    whole = pictures(opened(path), chunk=99)
    for chunk in (1, 2, 3, 5):
        np.testing.assert_array_equal(pictures(opened(path), chunk), whole)
    assert [number_of(p) for p in whole] == list(range(22))
