"""From a bundle and a video to answers, on one screen.

python example.py BUNDLE VIDEO
"""

import sys

import reflectrt


def main(bundle: str, clip: str) -> None:
    """Ask two questions about one video; the second costs no reading and no vision."""
    model = reflectrt.load(bundle)
    video = model.open(clip, fps=2)

    answer = video.ask("What moves through the picture?", options=["a bicycle", "a boat", "a plane", "a train"])
    print(answer.option, answer.text, answer.option_scores)
    print("reflection", answer.reflection.shape, "decoder runs", answer.forwards)

    print(video.ask("Describe the video.", max_new_tokens=16).text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python example.py BUNDLE VIDEO")
    try:
        main(*sys.argv[1:])
    except reflectrt.ReflectRTError as error:
        sys.exit(f"error: {error}")
