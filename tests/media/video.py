#!/usr/bin/python3
"""Frames of generated videos against what transformers' video processors are written to do, restated here from their
definitions with Python's own arithmetic and Debian's Pillow: the size that frames are resized to (Qwen2VLVideoProcessor:
by the pixels of a frame, Qwen3VLVideoProcessor: by those of all), the samples of every patch by their place in
(group, block row, block column, row in block, column in block, channel, frame, row, column), the grid, and the times.

usage: tests/media/video.py VIDEO_CLI [COUNT [SEED [transformers]]]
With the last word (and transformers, torch, torchvision and numpy installed) the videos are compared with the processors themselves, which
resize by torch and not by Pillow: grids must be equal, samples within 2 levels and 0.02 on average.
"""
import json
import math
import random
import subprocess
import sys
import tempfile

from PIL import Image

COUNT = 40


def frame_size(height, width, factor, least, most):
    """Qwen2-VL: bounds of one frame."""
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > most:
        beta = math.sqrt(height * width / most)
        h, w = (max(factor, math.floor(x / beta / factor) * factor) for x in (height, width))
    elif h * w < least:
        beta = math.sqrt(least / (height * width))
        h, w = (math.ceil(x * beta / factor) * factor for x in (height, width))
    return h, w


def volume_size(frames, height, width, factor, least, most, depth):
    """Qwen3-VL: bounds of all frames."""
    frames = max(frames, depth)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    h, w = round(height / factor) * factor, round(width / factor) * factor
    volume = round(frames / depth) * depth * h * w
    if volume > most:
        beta = math.sqrt(frames * height * width / most)
        h, w = (max(factor, math.floor(x / beta / factor) * factor) for x in (height, width))
    elif volume < least:
        beta = math.sqrt(least / (frames * height * width))
        h, w = (math.ceil(x * beta / factor) * factor for x in (height, width))
    return h, w


def samples_of(frames, patch, merge, depth):
    """Every sample of pixel_values_videos, before rescaling."""
    while len(frames) % depth:
        frames = frames + frames[-1:]
    width, height = frames[0].size
    pixels = [frame.tobytes() for frame in frames]
    out = bytearray()
    side = patch * merge
    for group in range(0, len(frames), depth):
        for block_y in range(0, height, side):
            for block_x in range(0, width, side):
                for y0 in range(block_y, block_y + side, patch):
                    for x0 in range(block_x, block_x + side, patch):
                        for channel in range(3):
                            for t in range(group, group + depth):
                                for y in range(y0, y0 + patch):
                                    row = 3 * (y * width + x0) + channel
                                    out += pixels[t][row:row + 3 * patch:3]
    return bytes(out)


def times_of(count, fps, depth):
    indices = list(range(count))
    while len(indices) % depth:
        indices.append(indices[-1])
    seconds = [i / fps for i in indices]
    middles = [(seconds[i] + seconds[i + depth - 1]) / 2 for i in range(0, len(seconds), depth)]
    return "".join(f"<{middle:.1f} seconds>" for middle in middles)


def differs_from_transformers(case, answer):
    """What is wrong about a video beside transformers' own processor, or None."""
    import numpy
    import torch
    import transformers

    name, newer, config, frames, _, out = case
    kind = transformers.Qwen3VLVideoProcessor if newer else transformers.Qwen2VLVideoProcessor
    processor = kind(**{key: value for key, value in config.items() if key != "video_processor_type"})
    video = torch.stack([torch.from_numpy(numpy.array(frame)).permute(2, 0, 1) for frame in frames])
    try:
        theirs = processor(videos=[video], return_tensors="pt", do_normalize=False, do_rescale=False,
                           do_sample_frames=False, input_data_format="channels_first")
    except ValueError as error:
        print(f"{name}: transformers refuses it: {error}")
        return None
    grid = " ".join(str(int(x)) for x in theirs["video_grid_thw"][0])
    if not answer.startswith(grid + " "):
        return f"{answer} instead of {grid}"
    samples = numpy.fromfile(out, dtype=numpy.uint8).astype(int)
    difference = numpy.abs(samples - theirs["pixel_values_videos"].numpy().reshape(-1).round().astype(int))
    if difference.max() > 2 or difference.mean() > 0.02:
        return f"samples differ by {difference.max()} at most, {difference.mean():.4f} on average"
    return None


def main():
    cli = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else COUNT
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 6)
    cases, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            newer = i % 2 == 1
            patch, merge, depth = rng.choice([(14, 2, 2), (16, 2, 2), (4, 2, 2), (3, 1, 3), (5, 3, 1)])
            factor = patch * merge
            least = rng.choice([1, factor * factor * 2, factor * factor * 16])
            most = least * rng.choice([1, 2, 8, 40]) * (rng.choice([1, 4]) if newer else 1)
            config = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": depth,
                      "size": {"shortest_edge": least, "longest_edge": most},
                      "video_processor_type": "Qwen3VLVideoProcessor" if newer else "Qwen2VLVideoProcessor"}
            size = (rng.randint(1, 90), rng.randint(1, 90))
            fps = rng.choice([1, 2, 2.5, 4, 24, 29.97, 0.3])
            frames, paths = [], []
            for j in range(rng.randint(1, 7)):
                frame = Image.merge("RGB", [Image.effect_noise(size, rng.uniform(20, 120)) for _ in range(3)])
                paths.append(f"{folder}/{i}.{j}.png")
                frame.save(paths[-1])
                frames.append(frame)
            with open(f"{folder}/{i}.json", "w", encoding="utf-8") as file:
                json.dump(config, file)
            family = "qwen3" if newer else "qwen2_5"
            lines.append(f"{folder}/{i}.json {family} {fps} {folder}/{i}.out {' '.join(paths)}\n")
            cases.append((f"video {i} {family} {len(frames)} x {size} {config}", newer, config, frames, fps,
                          f"{folder}/{i}.out"))
        answers = subprocess.run([cli], input="".join(lines), text=True, capture_output=True, check=True).stdout
        answers = answers.splitlines()
        assert len(answers) == count, f"{len(answers)} answers for {count} videos"
        failed = 0
        for case, answer in zip(cases, answers):
            name, newer, config, frames, fps, out = case
            if sys.argv[4:] == ["transformers"]:
                wrong = differs_from_transformers(case, answer)
                if wrong:
                    print(f"{name}: {wrong}")
                    failed += 1
                continue
            patch, merge, depth = config["patch_size"], config["merge_size"], config["temporal_patch_size"]
            least, most = config["size"]["shortest_edge"], config["size"]["longest_edge"]
            width, height = frames[0].size
            if newer:
                h, w = volume_size(len(frames), height, width, patch * merge, least, most, depth)
            else:
                h, w = frame_size(height, width, patch * merge, least, most)
            groups = -(-len(frames) // depth)
            want = f"{groups} {h // patch} {w // patch} {times_of(len(frames), fps, depth)}"
            resized = [frame.resize((w, h), Image.BICUBIC) for frame in frames]
            with open(out, "rb") as file:
                samples = file.read()
            if answer != want or samples != samples_of(resized, patch, merge, depth):
                print(f"{name}: {answer} instead of {want}")
                failed += 1
    print(f"{count - failed} of {count} videos as defined")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
