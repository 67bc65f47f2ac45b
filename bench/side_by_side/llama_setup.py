"""Builds llama.cpp, once, from the source archive of its published Python package.

The archive holds the C++ source of a fixed llama.cpp commit and the ctypes bindings that fit it. Two builds are made from it, each in
a directory of its own below one that git ignores: the shared library (for run.py) and `llama-server` (for speculation.py), both with
native instructions and OpenMP, without curl and without the web page. A finished build is recognised by its stamp file and is not
repeated.

    python3 bench/side_by_side/llama_setup.py [--dir DIR] [--jobs N] [--server] [--diffusion]

prints the interpreter of the library's environment (`import llama_cpp` works there), or the path of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
"""The release of `llama-cpp-python` that is compared against."""

HELPERS = ["scikit-build-core==1.1.2", "cmake", "ninja", "numpy", "gguf==0.19.0", "jinja2", "diskcache", "typing-extensions"]
"""What the build and the bindings need; all from the Python package index, as wheels."""

FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=ON",
    "-DGGML_CPU_REPACK=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
]

SERVER_FLAGS = [flag for flag in FLAGS if "LLAMA_BUILD" not in flag and "SHARED" not in flag] + [
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
]
"""The same arithmetic as the library's build, linked into one program; the web page is neither built nor fetched."""

AMX_FILE = "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_CALL = "    _tile_loadconfig(&tc);\n"
AMX_FIXED = '    __asm__ volatile("" : : "r"(&tc) : "memory"); /* side_by_side: keep every store to tc */\n' + AMX_CALL
"""GCC 12 declares that `_tile_loadconfig` reads 8 of the 64 bytes of its argument, and drops the other stores: the tile configuration
is then garbage and `ldtilecfg` faults on the first matrix product. A barrier that takes the address and clobbers memory keeps them."""


def default_dir() -> Path:
    """`TESSERA_SIDE_BY_SIDE_DIR`, else `target/side_by_side` of this repository."""
    given = os.environ.get("TESSERA_SIDE_BY_SIDE_DIR")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "target" / "side_by_side"


def run(command: list[str | Path], log: Path, cwd: Path | None = None) -> None:
    """Runs one command with its output appended to `log`; on failure shows the end of the log and stops."""
    with log.open("ab") as out:
        out.write(("$ " + " ".join(map(str, command)) + "\n").encode())
        out.flush()
        code = subprocess.run([str(part) for part in command], cwd=cwd, stdout=out, stderr=subprocess.STDOUT).returncode
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SystemExit(f"{tail}\nside_by_side: `{command[0]}` failed with {code}; the whole output is in {log}")


def patch_amx(source: Path) -> bool:
    """Applies the tile configuration fix; True when the file was changed. Refuses a source that looks different."""
    path = source / AMX_FILE
    text = path.read_text()
    if AMX_FIXED in text:
        return False
    if text.count(AMX_CALL) != 1:
        raise SystemExit(f"side_by_side: {AMX_FILE} is not the file this patch was written for; check it by hand")
    path.write_text(text.replace(AMX_CALL, AMX_FIXED))
    return True


def is_built(stamp: Path, flags: list[str], product: Path) -> bool:
    """Whether `product` exists and was made from this version with these flags and this fix."""
    return product.exists() and stamp.exists() and json.loads(stamp.read_text()) == wanted(flags)


def wanted(flags: list[str]) -> dict[str, object]:
    """What a build's stamp says."""
    return {"version": VERSION, "flags": flags, "amx_fix": AMX_FIXED}


def unpack(directory: Path, log: Path) -> tuple[Path, Path]:
    """The environment with the build's helpers and the patched source, made where they are missing: (environment, source)."""
    venv = directory / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", venv], log)
    run([python, "-m", "pip", "install", "-q", "--only-binary=:all:", *HELPERS], log)
    archive = directory / "sdist" / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.exists():
        run([python, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python",
             f"llama-cpp-python=={VERSION}", "-d", archive.parent], log)  # fmt: skip
    source = directory / f"llama_cpp_python-{VERSION}"
    if not source.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter="data")
    patch_amx(source)
    return venv, source


def compile_target(venv: Path, source: Path, build: Path, flags: list[str], target: str, jobs: int, log: Path) -> None:
    """Configures llama.cpp in `build` and compiles one target of it."""
    bin_dir = venv / "bin"
    run([bin_dir / "cmake", "-S", source / "vendor" / "llama.cpp", "-B", build, "-G", "Ninja",
         f"-DCMAKE_MAKE_PROGRAM={bin_dir / 'ninja'}", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
         "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", *flags], log)  # fmt: skip
    run([bin_dir / "cmake", "--build", build, "--target", target, "-j", str(jobs)], log)


def ensure(directory: Path, jobs: int = 2) -> Path:
    """Builds the library and its environment if they are not there; returns the environment's Python interpreter."""
    python = directory / "venv" / "bin" / "python"
    stamp = directory / "built.json"
    if is_built(stamp, FLAGS, python):
        return python
    log = directory / "build.log"
    print(f"side_by_side: building llama.cpp (llama-cpp-python {VERSION}) in {directory}: some minutes, once", file=sys.stderr)
    directory.mkdir(parents=True, exist_ok=True)
    venv, source = unpack(directory, log)
    build = directory / "build"
    compile_target(venv, source, build, FLAGS, "llama", jobs, log)
    lib = source / "llama_cpp" / "lib"
    lib.mkdir(exist_ok=True)
    for found in sorted(build.rglob("lib*.so*")):
        target = lib / found.name
        target.unlink(missing_ok=True)
        target.write_bytes(found.read_bytes())
    run([python, "-c", f"import sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'), 'llama_cpp_source.pth')"
         f".write_text({str(source)!r} + '\\n')"], log)  # fmt: skip
    run([python, "-c", "import llama_cpp; llama_cpp.llama_backend_init()"], log)
    stamp.write_text(json.dumps(wanted(FLAGS)))
    return python


def ensure_server(directory: Path, jobs: int = 2) -> Path:
    """Builds `llama-server` if it is not there, in a directory and with a stamp of its own; returns the program's path."""
    build = directory / "build-server"
    server = build / "bin" / "llama-server"
    stamp = directory / "built-server.json"
    if is_built(stamp, SERVER_FLAGS, server):
        return server
    log = directory / "build-server.log"
    print(f"side_by_side: building llama-server in {directory}: about ten minutes on two cores, once", file=sys.stderr)
    directory.mkdir(parents=True, exist_ok=True)
    venv, source = unpack(directory, log)
    compile_target(venv, source, build, SERVER_FLAGS, "llama-server", jobs, log)
    run([server, "--version"], log)
    stamp.write_text(json.dumps(wanted(SERVER_FLAGS)))
    return server


def ensure_diffusion(directory: Path, jobs: int = 2) -> Path:
    """Builds llama.cpp's diffusion example if it is not there, on top of the server's build; returns the program's path."""
    ensure_server(directory, jobs)
    build = directory / "build-server"
    program = build / "bin" / "llama-diffusion-cli"
    if program.exists():
        return program
    log = directory / "build-server.log"
    flags = [flag.replace("BUILD_EXAMPLES=OFF", "BUILD_EXAMPLES=ON") for flag in SERVER_FLAGS]
    compile_target(directory / "venv", directory / f"llama_cpp_python-{VERSION}", build, flags, program.name, jobs, log)
    return program


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=default_dir(), help="build directory (default: target/side_by_side)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="parallel compiler processes")
    parser.add_argument("--server", action="store_true", help="build llama-server instead of the library")
    parser.add_argument("--diffusion", action="store_true", help="build the diffusion example")
    arguments = parser.parse_args()
    build = ensure_diffusion if arguments.diffusion else ensure_server if arguments.server else ensure
    print(build(arguments.dir, arguments.jobs))


if __name__ == "__main__":
    main()
