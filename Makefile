# weft: every target first installs what it needs with apt-get (tools/packages.txt), if anything is missing.
#   make serve    build, then serve the bundled demo model on 127.0.0.1:8000   (ARGS="MODEL --port 8001")
#   make run      build, then chat with it in the terminal                     (ARGS="MODEL --max-tokens 200")
#   make test     build everything and run all tests; the last line counts them
#   make build    build/release/weft        CUDA=1 with the CUDA backend, CUDA=0 without;
#                                           default: where nvcc and a GPU are found
#   make docs     the pages that are written from the code
#   make bench    measurements   make lint   format, layers, sizes, clang-tidy
#   make fuzz     every fuzzer for FUZZ_SECONDS   make deps   packages only   make clean   remove build/
BUILD := build/release
JOBS ?= $(shell nproc)
ARGS ?=
WERROR ?= 0
FUZZ_SECONDS ?= 60
export CCACHE_BASEDIR := $(CURDIR)

HAVE_NVCC = command -v nvcc || test -x /usr/local/cuda/bin/nvcc
HAVE_GPU = test -e /dev/nvidia0 || nvidia-smi -L
CUDA ?= $(shell { { $(HAVE_NVCC); } && { $(HAVE_GPU); }; } >/dev/null 2>&1 && echo 1 || echo 0)

.PHONY: deps deps-build deps-test deps-lint deps-fuzz build run serve test bench lint docs fuzz clean \
  configure-build configure-test program

deps:
	@tools/deps.sh build test differential openai load format lint fuzz
deps-build:
	@tools/deps.sh build
deps-test:
	@tools/deps.sh build test
deps-lint:
	@tools/deps.sh build test format lint
deps-fuzz:
	@tools/deps.sh build fuzz

# A build directory that already has the tests stays as it is: `make run` after `make test` compiles nothing.
configure-build: deps-build
	@tools/configure.sh $(BUILD) $(CUDA) $(WERROR) program
configure-test: deps-test
	@tools/configure.sh $(BUILD) $(CUDA) $(WERROR) tests

program: configure-build
	@cmake --build $(BUILD) --target weft -j $(JOBS)

build: program
run: program
	@$(BUILD)/weft run $(ARGS)
serve: program
	@$(BUILD)/weft serve $(ARGS)

test: configure-test
	@cmake --build $(BUILD) -j $(JOBS)
	@tools/run_tests.sh $(BUILD) -j $(JOBS) $(ARGS)

bench: configure-test
	@cmake --build $(BUILD) -j $(JOBS)
	@tools/run_bench.sh $(BUILD) $(ARGS)

lint: configure-test deps-lint
	@tools/lint.sh $(BUILD) $(ARGS)

# The pages that are written from tables in the code.
docs: program
	@$(BUILD)/weft doctor --refusals > docs/refusals.md

fuzz: deps-fuzz
	@cmake --preset fuzz
	@cmake --build build/fuzz --target weft_fuzzers -j $(JOBS)
	@tools/run_fuzzers.sh build/fuzz $(FUZZ_SECONDS)

clean:
	rm -rf build
