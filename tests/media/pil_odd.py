#!/usr/bin/python3
"""Files that Pillow itself would not write, as Debian's Pillow decodes them: PNGs of every depth and color type, interlaced, with
transparent colors and short palettes; EXIF of every type of number, order of bytes and place; JPEGs with and without
Adobe's marker, of YCCK, with profiles; GIFs whose frames leave the screen, lack palettes, are interlaced; animations;
garbage behind the end. The pixels must be equal.

usage: tests/media/pil_odd.py IMAGE_CLI [SEED]
"""
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

from PIL import Image, ImageChops, ImageCms

from pil import differences, expected_of

SIZES = [(1, 1), (1, 7), (7, 1), (13, 9), (33, 17)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def noise(mode, size):
    bands = [Image.effect_noise(size, 80) for _ in range(4)]
    count = len(Image.new(mode, (1, 1)).getbands())
    return Image.merge(mode, bands[:count]) if count > 1 else bands[0].convert(mode)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rng, size, depth, color, interlaced, extra=b""):
    width, height = size
    rows = b""
    for x0, y0, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns = -(-(width - x0) // dx)
        if columns > 0:
            for _ in range(y0, height, dy):
                rows += bytes([rng.randrange(5)]) + rng.randbytes((columns * CHANNELS[color] * depth + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) +
            chunk(b"IEND", b""))


def pngs(rng):
    for depth, color in [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3), (8, 4),
                         (16, 4), (8, 6), (16, 6)]:
        for size in SIZES:
            for interlaced in (0, 1):
                name = f"png of {depth} bits, type {color}, {size}, {interlaced}"
                palette = chunk(b"PLTE", rng.randbytes(3 << depth)) if color == 3 else b""
                yield name, png(rng, size, depth, color, interlaced, palette)
                if color in (0, 2):
                    clear = b"".join(struct.pack(">H", rng.randrange(1 << depth)) for _ in range(CHANNELS[color]))
                    yield name + ", a clear color", png(rng, size, depth, color, interlaced, chunk(b"tRNS", clear))
                if color == 3:
                    clear = chunk(b"tRNS", rng.randbytes(2))
                    yield name + ", clear entries", png(rng, size, depth, color, interlaced, palette + clear)
                    short = chunk(b"PLTE", rng.randbytes(3 * rng.randint(1, 1 << depth)))
                    yield name + ", short palette", png(rng, size, depth, color, interlaced, short)
    for kind, data in [(b"gAMA", struct.pack(">I", 200000)), (b"sBIT", b"\5\5\5"), (b"bKGD", bytes(6))]:
        yield f"png with {kind}", png(rng, (9, 9), 8, 2, 0, chunk(kind, data))


def exif(orientation, order="<", kind=3, count=1, elsewhere=False):
    """A TIFF structure whose second entry is the orientation."""
    value = struct.pack(order + {1: "B", 2: "B", 3: "H", 4: "I", 8: "h", 9: "i"}[kind], orientation) * count
    entries = struct.pack(order + "HHII", 0x0100, 4, 1, 5)
    entries += struct.pack(order + "HHI", 0x0112, kind, count)
    entries += struct.pack(order + "I", 38) if elsewhere else value.ljust(4, b"\0")[:4]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    return head + entries + bytes(4) + (value if elsewhere else b"")


def segment(kind, data):
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data


def exifs():
    for order in "<>":
        for orientation in range(11):
            for size in [(1, 1), (5, 3), (40, 17)]:
                block, image = exif(orientation, order), noise("RGB", size)
                yield f"png, {order} {orientation} {size}", saved(image, "PNG", exif=block)
                block = b"Exif\0\0" + block
                yield f"jpeg, {order} {orientation} {size}", saved(image, "JPEG", exif=block, subsampling=2)
                yield f"webp, {order} {orientation} {size}", saved(image, "WEBP", exif=block, lossless=True)
        plain = saved(noise("RGB", (6, 4)), "JPEG")
        for kind in (1, 2, 3, 4, 8, 9):
            for count, elsewhere in [(1, False), (2, True), (3, True)] + ([(2, False)] if kind in (3, 8) else []):
                block = segment(0xE1, b"Exif\0\0" + exif(6, order, kind, count, elsewhere))
                yield f"jpeg, {order} type {kind}, {count} values, {elsewhere}", plain[:2] + block + plain[2:]
        first, second = (segment(0xE1, b"Exif\0\0" + exif(o, order)) for o in (6, 3))
        yield f"jpeg, {order} two blocks", plain[:2] + first + second + plain[2:]
        yield f"jpeg, {order} fill bytes", plain[:2] + b"\xff\xff\xff" + first + plain[2:]
        plain = saved(noise("RGB", (6, 4)), "PNG")
        yield f"png, {order} behind the pixels", plain[:-12] + chunk(b"eXIf", exif(6, order)) + plain[-12:]


def jpegs(profile):
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            for size in SIZES:
                for subsampling in (0, 1, 2) if mode == "RGB" else (0,):
                    file = saved(noise(mode, size), "JPEG", progressive=progressive, subsampling=subsampling)
                    yield f"jpeg {mode} {size} {progressive} {subsampling}", file
    plain = saved(noise("RGB", (18, 11)), "JPEG")
    inks = saved(noise("CMYK", (18, 11)), "JPEG")
    at = inks.find(b"Adobe")
    for transform in (0, 1, 2):
        marker = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
        yield f"jpeg RGB, Adobe's {transform}", plain[:2] + marker + plain[20:]
        yield f"jpeg CMYK, Adobe's {transform}", inks[:at + 11] + bytes([transform]) + inks[at + 12:]
    yield "jpeg CMYK, no marker", inks[:at - 4] + inks[at + 12:]
    yield "jpeg without JFIF", plain[:2] + plain[20:]
    yield "jpeg with a profile", saved(noise("RGB", (18, 11)), "JPEG", icc_profile=profile)
    yield "jpeg with a long profile", saved(noise("RGB", (18, 11)), "JPEG", icc_profile=os.urandom(300000))


def lzw(rng, bits, indices):
    """Codes of random strings of the table, cleared now and then."""
    out, held, count = bytearray(), 0, 0

    def put(code, size):
        nonlocal held, count
        held |= code << count
        count += size
        while count >= 8:
            out.append(held & 255)
            held >>= 8
            count -= 8

    clear, at = 1 << bits, 0
    strings, size = {}, bits + 1
    put(clear, size)
    while at < len(indices):
        if not strings:
            strings, next_code, size = {(i,): i for i in range(clear)}, clear + 2, bits + 1
            first = True
        end = at + 1
        while end < len(indices) and tuple(indices[at:end + 1]) in strings:
            end += 1
        put(strings[tuple(indices[at:end])], size)
        # The reader knows a string one code later than the writer.
        if not first:
            if next_code == 1 << size and size < 12:
                size += 1
        first = False
        if end < len(indices) and next_code < 4096:
            strings[tuple(indices[at:end + 1])] = next_code
            next_code += 1
        at = end
        if rng.random() < 0.01:
            if next_code - 1 == 1 << size and size < 12:
                size += 1
            put(clear, size)
            strings = {}
    if strings and next_code - 1 == 1 << size and size < 12:
        size += 1
    put(clear + 1, size if strings else bits + 1)
    put(0, 8)
    data, blocks = bytes(out), bytes([bits])
    while data:
        part = data[:rng.randint(1, 255)]
        blocks += bytes([len(part)]) + part
        data = data[len(part):]
    return blocks + b"\0"


def gif(rng, screen, frames, palette_bits):
    """Frames are (left, top, width, height)."""
    flags = 0x80 | (palette_bits - 1) if palette_bits else 0
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, flags, rng.randrange(4), 0)
    if palette_bits:
        out += rng.randbytes(3 << palette_bits)
    for left, top, width, height in frames:
        if rng.random() < 0.5:
            out += b"\x21\xfe\x05hello\x00"
        bits = rng.randint(2, 8)
        if rng.random() < 0.6:
            control = struct.pack("<BHB", rng.randrange(4) << 2 | rng.randrange(2), rng.randrange(20), rng.randrange(1 << bits))
            out += b"\x21\xf9\x04" + control + b"\0"
        own = rng.choice([0, 0, rng.randint(1, bits)])
        flags = (0x80 | (own - 1) if own else 0) | (0x40 if rng.random() < 0.5 else 0)
        out += b"\x2c" + struct.pack("<HHHHB", left, top, width, height, flags) + rng.randbytes(3 << own if own else 0)
        run = rng.choice([1, 3, 20])
        indices = []
        while len(indices) < width * height:
            indices += [rng.randrange(1 << bits)] * rng.randint(1, run)
        out += lzw(rng, bits, indices[:width * height])
    return out + b"\x3b"


def gifs(rng):
    for i in range(150):
        screen = (rng.randint(1, 90), rng.randint(1, 90))
        frame = (0, 0, *screen)
        if rng.random() < 0.6:  # within the screen or beyond it
            frame = (rng.randint(0, 40), rng.randint(0, 40), rng.randint(1, 60), rng.randint(1, 60))
        yield f"gif {i} {screen} {frame}", gif(rng, screen, [frame] * rng.randint(1, 2), rng.choice([0, 1, 2, 5, 8]))
    for mode in ("L", "RGB", "P", "1"):
        for size in SIZES + [(200, 150)]:
            image = noise(mode, size)
            more = [noise("RGB", size) for _ in range(2)]
            yield f"gif {mode} {size}", saved(image, "GIF")
            if mode in ("L", "RGB"):
                yield f"gif {mode} {size}, moving", saved(image.convert("RGB"), "GIF", save_all=True, append_images=more, duration=100)


def animations(profile):
    for mode in ("RGB", "RGBA"):
        for size in SIZES:
            first, second = noise(mode, size), noise(mode, size)
            for lossless in (False, True):
                file = saved(first, "WEBP", lossless=lossless, save_all=True, append_images=[second], background=(9, 200, 3, 255))
                yield f"moving webp {mode} {size} {lossless}", file
            yield f"moving png {mode} {size}", saved(first, "PNG", save_all=True, append_images=[second])
            yield f"moving png {mode} {size}, a picture before", saved(first, "PNG", save_all=True, append_images=[second],
                                                                       default_image=True)
    yield "webp with a profile", saved(noise("RGB", (9, 7)), "WEBP", icc_profile=profile)
    yield "png with a profile", saved(noise("RGB", (9, 7)), "PNG", icc_profile=profile)


def main():
    warnings.simplefilter("ignore")
    cli = sys.argv[1]
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 6)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    cases = [*pngs(rng), *exifs(), *jpegs(profile), *gifs(rng), *animations(profile)]
    cases = [(name, file + rng.randbytes(50) if rng.random() < 0.1 else file) for name, file in cases]
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for i, (_, file) in enumerate(cases):
            with open(f"{folder}/{i}", "wb") as out:
                out.write(file)
            lines.append(f"{folder}/{i} {folder}/{i}.ppm 0 0 0\n")
        answers = subprocess.run([cli], input="".join(lines), text=True, capture_output=True, check=True).stdout
        answers = answers.splitlines()
        assert len(answers) == len(cases), f"{len(answers)} answers for {len(cases)} images"
        failed = 0
        for i, (name, _) in enumerate(cases):
            want = expected_of(f"{folder}/{i}")
            if answers[i].startswith("error"):
                wrong = answers[i]
            else:
                got = Image.open(f"{folder}/{i}.ppm")
                wrong = f"{got.size}" if got.size != want.size else ""
                if not wrong and ImageChops.difference(got, want).getbbox():
                    wrong = f"differs by {differences(got, want)}"
            if wrong:
                print(f"{i} {name}: {wrong}")
                failed += 1
    print(f"{len(cases) - failed} of {len(cases)} images as Pillow has them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
