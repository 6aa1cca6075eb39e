# make train    train a GPT on TinyShakespeare and sample from it
# make check    the tests of everyday work; make test: every test
# make help     the other targets

ifeq ($(origin CC),default)
  CC = gcc
endif
BUILD ?= build
# Of all that -O3 adds in gcc, the model gains by the vectorisation alone, and -O3 compiles half as fast.
OPT ?= -O2 -march=native $(if $(is_clang),,-fvect-cost-model=dynamic)
# Nearly all of a compiler's time goes into optimisation, and most tests run for less than a second.
# -Og therefore saves more than the slower programs cost. SLOW_TESTS keep the programs' optimisation.
TEST_OPT ?= $(patsubst -O%,-Og,$(OPT))
# WERROR=-Werror makes every warning an error, as in CI.
WERROR ?=
VERSION := $(shell cat VERSION)
is_clang := $(findstring clang,$(shell $(CC) --version))
# A switch over an enum that forgets a value never compiles.
WARN = -Wall -Wextra -Wshadow -Wcast-qual $(if $(is_clang),-Wcast-align,-Wcast-align=strict) -Wundef -Wvla \
       -Wformat=2 -Werror=switch $(WERROR)
C_WARN = $(WARN) -Wstrict-prototypes -Wmissing-prototypes
# The model's loops vectorise without -ffast-math, which would break the checks for NaN.
CFLAGS ?=
override CFLAGS += -std=gnu11 -I. -DCM_VERSION='"$(VERSION)"' $(C_WARN) -fno-math-errno -fno-trapping-math \
                   -ffp-contract=fast
# clang reports each loop that it does not vectorise, such as loops over exp in the double build.
override CFLAGS += $(if $(is_clang),-Wno-pass-failed)
LDLIBS += -lm -lpthread
SHELL = /bin/sh
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)

# Ask the compiler what this machine has.
hash := \#
have = $(shell printf '$(1)\nint main(void){return 0;}\n' | $(CC) -x c - $(2) -o /dev/null 2>/dev/null && echo yes)
ifeq ($(call have,$(hash)include <omp.h>,-fopenmp),yes)
  override CFLAGS += -fopenmp
else
  override CFLAGS += -Wno-unknown-pragmas $(if $(call have,,-fopenmp-simd),-fopenmp-simd)
  $(info note: $(CC) has no OpenMP, so the program will use one core (Debian: apt-get install gcc, or libomp-dev for clang))
endif
ONEDNN ?= $(call have,$(hash)include <dnnl.h>,-ldnnl)
ifeq ($(ONEDNN),yes)
  DNNL = -DCM_USE_ONEDNN
  DNNL_LIBS = -ldnnl
endif

PROGRAMS = train_gpt generate data/tokenize
DOUBLE_TESTS = gpt optim variants lora msign attention gemm speedrun
TESTS = $(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c)) $(BUILD)/test_gpt \
        $(DOUBLE_TESTS:%=$(BUILD)/test_%_double)

# Fuzz targets, and the programs that run each file of a target's corpus once.
FUZZ ?= $(patsubst dev/fuzz/fuzz_%.c,%,$(wildcard dev/fuzz/fuzz_*.c))
FUZZ_TESTS = $(FUZZ:%=$(BUILD)/test_fuzz_%)

# Tests of the CUDA side that need no GPU. The kernels run on the emulator (dev/emu) in bf16 and in
# fp32; the tests that the CPU passes run on them too.
EMU_KERNEL_TESTS = $(patsubst dev/test/cuda/test_%.cu,%,$(wildcard dev/test/cuda/test_*.cu))
EMU_TESTS = $(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%) \
            $(patsubst %,$(BUILD)/emu/test_%_fp32,$(filter-out emu cudnn cudnn_api,$(EMU_KERNEL_TESTS))) \
            $(patsubst %,$(BUILD)/emu/test_%_fp32,optim variants lora msign speedrun) \
            $(BUILD)/emu/test_gpt_cuda $(BUILD)/emu/test_gpt_cuda_fp32
EMU_PROGRAMS = $(BUILD)/emu/train_gpt $(BUILD)/emu/train_gpt_fp32 $(BUILD)/emu/generate_fp32

LIBRARY = libcmuon.so.1 libcmuon.so libcmuon.a cmuon.pc

.PHONY: all train compare check test test-faults test-asan asan-programs test-tsan tsan-programs \
        fuzz fuzz-programs fuzz-check fuzz-tests bench install dist clean help
.PHONY: format format-check analyze compile_commands.json
all: $(PROGRAMS)

# ---- Programs and tests for the CPU

# Every program is one translation unit. The compiler writes its list of headers to $(BUILD), and make
# reads these lists back, so a changed header rebuilds only what includes it.
deps = -MMD -MP -MF $(BUILD)/$(subst /,_,$@).d -MT $@
-include $(wildcard $(BUILD)/*.d)
compile = $(CC) $(1) $(CFLAGS) $(deps) $< -o $@ $(2) $(LDLIBS)
$(BUILD) $(BUILD)/emu $(BUILD)/cuda:
	mkdir -p $@

train_gpt generate: %: %.c VERSION | $(BUILD)
	$(call compile,$(OPT) $(DNNL),$(DNNL_LIBS))
data/tokenize: data/tokenize.c VERSION | $(BUILD)
	$(call compile,$(OPT))
$(BUILD)/train_gpt $(BUILD)/generate: $(BUILD)/%: %.c VERSION | $(BUILD)
	$(call compile,$(TEST_OPT) $(DNNL),$(DNNL_LIBS))

# Tests that run for seconds, and those of the inner loops, are optimised as the programs are.
SLOW_TESTS = $(BUILD)/test_gemm $(BUILD)/test_attention $(BUILD)/test_msign
$(SLOW_TESTS): TEST_OPT = $(OPT)

$(BUILD)/test_gpt: test_gpt.c | $(BUILD)
	$(call compile,$(TEST_OPT) $(DNNL),$(DNNL_LIBS))
# Finite differences need double precision throughout.
$(BUILD)/test_gpt_double: test_gpt.c | $(BUILD)
	$(call compile,$(TEST_OPT) -DCM_DOUBLE)
$(BUILD)/test_%_double: dev/test/test_%.c | $(BUILD)
	$(call compile,$(TEST_OPT) -DCM_DOUBLE)
$(BUILD)/test_library: LDLIBS += -ldl
$(BUILD)/test_%: dev/test/test_%.c | $(BUILD)
	$(call compile,$(TEST_OPT) $(DNNL),$(DNNL_LIBS))
$(BUILD)/bench_%: dev/bench/%.c | $(BUILD)
	$(call compile,$(OPT) $(DNNL),$(DNNL_LIBS))

# What the tests in dev/test/faults preload into the programs. It needs glibc.
FAULTS := $(if $(call have,$(hash)include <gnu/libc-version.h>),$(BUILD)/faults.so)
$(BUILD)/faults.so: dev/test/faults/shim.c | $(BUILD)
	$(CC) -O1 -g $(filter-out -fopenmp,$(CFLAGS)) $(deps) -fPIC -shared $< -o $@ -ldl

# ---- libcmuon, the optimizer for other programs

# Only what cmuon.h marks is visible. The library stays loaded (nodelete), because threads that end run
# its clean-up. The number after .so is that of the ABI and changes when a program must be rebuilt.
$(BUILD)/cmuon.o: llmc/cmuon.c VERSION | $(BUILD)
	$(CC) $(OPT) $(CFLAGS) $(deps) -fPIC -fvisibility=hidden -c $< -o $@
libcmuon.so.1: $(BUILD)/cmuon.o
	$(CC) $(OPT) $(CFLAGS) -shared -Wl,-soname,$@ -Wl,-z,nodelete $< -o $@ $(LDLIBS)
libcmuon.so: libcmuon.so.1
	ln -sf $< $@
libcmuon.a: $(BUILD)/cmuon.o
	rm -f $@
	$(AR) rcs $@ $<

PREFIX ?= /usr/local
# A word of the shell: folders may have spaces and quotes in their names.
quote = '$(subst ','\'',$(1))'
write_pc = printf '%s\n' $(call quote,prefix=$(PREFIX)) 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' \
	  'Name: cmuon' 'Description: Compositional Muon, LoRA-Muon and Muon in C' 'Version: $(VERSION)' \
	  'Libs: -L"$${libdir}" -lcmuon' 'Libs.private: $(filter -fopenmp,$(CFLAGS)) $(LDLIBS)' \
	  'Cflags: -I"$${includedir}"'
cmuon.pc: Makefile VERSION
	@$(write_pc) >$@

# make install PREFIX=$$HOME/.local; DESTDIR is put before it.
installed = $(call quote,$(DESTDIR)$(PREFIX)/$(1))
install: $(LIBRARY)
	mkdir -p $(call installed,lib/pkgconfig) $(call installed,include)
	install -m 755 libcmuon.so.1 $(call installed,lib)
	ln -sf libcmuon.so.1 $(call installed,lib/libcmuon.so)
	install -m 644 libcmuon.a $(call installed,lib)
	$(write_pc) >$(call installed,lib/pkgconfig/cmuon.pc)
	install -m 644 llmc/cmuon.h $(call installed,include)

# ---- CUDA on the emulator: needs a C++ compiler, no CUDA and no GPU

CXX = $(if $(findstring clang,$(CC)),clang++,g++)
TEST_SCRIPTS = $(wildcard dev/test/*_test.sh dev/test/faults/*_test.sh)
ifneq ($(shell command -v $(CXX) >/dev/null && echo yes),yes)
  EMU_TESTS =
  EMU_PROGRAMS =
  TEST_SCRIPTS := $(filter-out %/cuda_test.sh,$(TEST_SCRIPTS))
  $(info note: no $(CXX), so the tests of the CUDA kernels are left out (Debian: apt-get install g++))
endif
EMU_OPT ?= -Og
EMU_FLAGS = -std=c++20 -I. -Idev/emu -DCM_VERSION='"$(VERSION)"' $(WARN) -Wno-missing-field-initializers -Wno-unknown-pragmas \
            -fno-math-errno -fno-strict-aliasing -ffp-contract=off -DCM_CUDA -DCM_EMU
precision = $(if $(findstring _fp32,$@),-DCM_FP32)
emu_build = $(CXX) $(EMU_OPT) $(EMU_FLAGS) $(precision) $(deps) $(emulator) -x c++ $< -x none $(filter %.o,$^) -o $@ $(LDLIBS)

# g++ reads the emulator's headers, a third of a second, from a precompiled file. A compiler accepts
# such a file under equal flags only, so there is one with OpenMP, for the tests of kernels, and one without.
ifeq ($(is_clang),)
  emulator = $(addprefix -include ,$(patsubst %.gch,%,$(filter %.gch,$|)))
  EMULATOR = $(BUILD)/emu/plain/emu.h.gch
  EMULATOR_OPENMP = $(BUILD)/emu/openmp/emu.h.gch
$(EMULATOR) $(EMULATOR_OPENMP): dev/emu/emu.h
	mkdir -p $(@D)
	$(CXX) $(EMU_OPT) $(EMU_FLAGS) $(if $(findstring openmp,$@),$(filter -fopenmp,$(CFLAGS))) $(deps) -x c++-header $< -o $@
endif

# The twin's sums are what the kernels' sums are compared with: vectorised, they are more exact.
$(BUILD)/twin.o: dev/test/cuda/twin.c | $(BUILD)
	$(CC) $(patsubst -O%,-O1,$(OPT)) $(CFLAGS) $(deps) -c $< -o $@
# A few updates of small matrices, for programs without OpenMP.
$(BUILD)/twin_plan.o: dev/test/cuda/twin_plan.c | $(BUILD)
	$(CC) $(patsubst -O%,-O0,$(OPT)) $(filter-out -fopenmp,$(CFLAGS)) -Wno-unknown-pragmas $(deps) -c $< -o $@
$(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%): $(BUILD)/emu/test_%: dev/test/cuda/test_%.cu $(BUILD)/twin.o | $(BUILD)/emu $(EMULATOR_OPENMP)
	$(emu_build) $(filter -fopenmp,$(CFLAGS))
$(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%_fp32): $(BUILD)/emu/test_%_fp32: dev/test/cuda/test_%.cu $(BUILD)/twin.o | $(BUILD)/emu $(EMULATOR_OPENMP)
	$(emu_build) $(filter -fopenmp,$(CFLAGS))
# The test that runs longest.
$(BUILD)/emu/test_attention_sm90: EMU_OPT := $(subst -Og,-O1,$(EMU_OPT))
$(BUILD)/emu/test_attention_sm90: emulator =
# This test compares with cuDNN's header, where the toolkit has one.
$(BUILD)/emu/test_cudnn_api: emulator =
$(BUILD)/emu/test_cudnn_api: EMU_FLAGS += $(addprefix -isystem ,$(wildcard $(cuda_root)/include))
$(BUILD)/emu/test_gpt_cuda $(BUILD)/emu/test_gpt_cuda_fp32: test_gpt.cu $(BUILD)/twin_plan.o | $(BUILD)/emu $(EMULATOR)
	$(emu_build)
$(BUILD)/emu/test_%_fp32: dev/test/test_%.c | $(BUILD)/emu $(EMULATOR)
	$(emu_build)
$(BUILD)/emu/train_gpt $(BUILD)/emu/train_gpt_fp32: train_gpt.cu VERSION | $(BUILD)/emu $(EMULATOR)
	$(emu_build)
$(BUILD)/emu/generate $(BUILD)/emu/generate_fp32: generate.cu VERSION | $(BUILD)/emu $(EMULATOR)
	$(emu_build)

# ---- CUDA: nvcc from the PATH or the usual places; ARCH=sm_80 or the GPU's own, else sm_90. sm_90 means sm_90a, which
# has the instructions of llmc/cuda/wgmma.cuh and runs on the same GPUs.
# cuBLASLt may be the toolkit's, the distribution's, or that of the wheels that PyTorch brings, whose folder
# (site-packages/nvidia) python3 tells or CUDA_WHEELS names. cuDNN, NVRTC and NVML are found when a program runs.
NVCC ?= $(or $(shell command -v nvcc 2>/dev/null),$(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc) /usr/local/cuda/bin/nvcc \
          /usr/local/cuda-*/bin/nvcc /opt/cuda/bin/nvcc $(CUDA_WHEELS:%=%/cu1[0-9]/bin/nvcc))))
cuda_root = $(patsubst %/bin/,%,$(dir $(realpath $(NVCC))))
cuda_goals := $(filter-out $(BUILD)/emu/%,$(filter cuda %cuda %cuda_fp32 $(BUILD)/cuda/%,$(MAKECMDGOALS)))
gpu_arch = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/^\([0-9]*\)\.\([0-9]*\).*/sm_\1\2/p')
cuda_arch := $(patsubst sm_90,sm_90a,$(or $(ARCH),$(if $(cuda_goals),$(gpu_arch)),sm_90))
ifneq ($(and $(cuda_goals),$(NVCC)),)
  cuda_major := $(shell $(NVCC) --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
  cuda_libs := $(wildcard $(cuda_root)/lib64 $(cuda_root)/lib $(cuda_root)/targets/$(shell uname -m)-linux/lib)
  # The library of that name in the first folder that has one: a link for the linker, or what only a loader finds.
  first_cublas = $(firstword $(foreach d,$(1),$(wildcard $(d)/libcublasLt.so $(d)/libcublasLt.so.$(cuda_major))))
  cublas := $(call first_cublas,$(cuda_libs))
  # Its header is beside it, or nvcc's own.
  first_header = $(abspath $(firstword $(wildcard $(addsuffix /cublasLt.h,$(cublas:%=$(dir $(cublas))../include) $(1)))))
  cublas_h := $(call first_header,$(cuda_root)/include $(cuda_root)/targets/*/include)
  ifeq ($(and $(cublas),$(cublas_h)),)
    CUDA_WHEELS ?= $(shell python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null)
    wheels := $(foreach d,$(CUDA_WHEELS),$(d)/cu$(cuda_major) $(d)/cublas)
    cublas := $(or $(cublas),$(call first_cublas,$(wildcard /usr/lib/*-linux-gnu /usr/lib64 /usr/local/lib) $(wheels:%=%/lib)))
    cublas_h := $(call first_header,$(cuda_root)/include /usr/include /usr/local/include $(wheels:%=%/include))
    $(info note: cuBLASLt is $(or $(cublas),nowhere), its header $(or $(cublas_h),nowhere)$(if $(and $(cublas),$(cublas_h)),,: \
      install it, or name the wheels: CUDA_WHEELS=/path/to/site-packages/nvidia))
  endif
  # Headers of the toolkit come first: wheels have some of another version.
  CUBLAS_FLAGS := $(addprefix -isystem ,$(filter-out /usr/include $(cuda_root)/%,$(patsubst %/,%,$(dir $(cublas_h)))))
  cuda_folders := $(sort $(realpath $(firstword $(cuda_libs)) $(dir $(cublas))))
endif
NVCC_OPT ?= -O3
NVCCFLAGS = -std=c++20 $(NVCC_OPT) -arch=$(cuda_arch) -I. $(CUBLAS_FLAGS) -DCM_CUDA -DCM_VERSION='"$(VERSION)"' \
            -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers,-Werror=switch,-Wno-unknown-pragmas $(if $(WERROR),-Werror all-warnings) \
            -diag-suppress 177 $(if $(filter -fopenmp,$(CFLAGS)),-Xcompiler -fopenmp)
CUDA_LIBS = $(foreach d,$(cuda_folders),-L$(d) -Xlinker -rpath -Xlinker $(d)) \
            $(if $(filter %.so,$(or $(cublas),.so)),-lcublasLt,-l:$(notdir $(cublas))) -ldl
nvcc_build = $(if $(NVCC),,$(error no nvcc: install the CUDA Toolkit, 12.4 or later, or name it with NVCC=/path/to/nvcc))\
             $(NVCC) $(NVCCFLAGS) $(precision) $(deps) $< $(filter %.o,$^) -o $@ $(CUDA_LIBS)
CUDA_PROGRAMS = train_gpt_cuda train_gpt_cuda_fp32 generate_cuda
CUDA_KERNEL_TESTS = $(filter-out emu,$(EMU_KERNEL_TESTS))

.PHONY: cuda
cuda: $(CUDA_PROGRAMS)

train_gpt_cuda train_gpt_cuda_fp32: train_gpt.cu VERSION | $(BUILD)
	$(nvcc_build)
generate_cuda: generate.cu VERSION | $(BUILD)
	$(nvcc_build)
$(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%): $(BUILD)/cuda/test_%: dev/test/cuda/test_%.cu $(BUILD)/twin.o | $(BUILD)/cuda
	$(nvcc_build)
$(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%_fp32): $(BUILD)/cuda/test_%_fp32: dev/test/cuda/test_%.cu $(BUILD)/twin.o | $(BUILD)/cuda
	$(nvcc_build)
$(BUILD)/cuda/bench_cuda: dev/bench/cuda.cu | $(BUILD)/cuda
	$(nvcc_build)
test_gpt_cuda test_gpt_cuda_fp32: test_gpt.cu $(BUILD)/twin_plan.o | $(BUILD)
	$(nvcc_build)
# The tests that run on a device: the model's program, and one program for each file of kernels, in both precisions.
test_gpt_cuda: | test_gpt_cuda_fp32 $(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%) $(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%_fp32)

# ---- The main job. RUN names the run folder, ARGS adds flags: make train RUN=b ARGS="--seed 2".

RUN ?= shakespeare
train: train_gpt generate
	@sh scripts/train_shakespeare.sh $(call quote,$(RUN)) $(ARGS)

# Does CM beat Muon? make compare GRID=dev/compare/attention.toml ARGS="--jobs 8" runs another grid.
GRID ?= dev/compare/laptop.toml
compare: train_gpt
	@sh scripts/compare.sh $(call quote,$(GRID)) $(ARGS)

# ---- Tests

# make test T=NAME builds and runs the programs whose name begins with NAME, and of the other programs
# the tests whose name begins with NAME.
T ?=
open := (
stem = $(patsubst test_%,%,$(patsubst %_fp32,%,$(patsubst %_double,%,$(notdir $(1)))))
source_of = $(firstword $(wildcard $(if $(findstring /emu/,$(1)),dev/test/cuda/test_$(stem).cu) dev/test/test_$(stem).c \
              test_$(stem).c $(if $(filter gpt_cuda,$(stem)),test_gpt.cu))) \
            $(if $(filter %/test_gpt_cuda_fp32,$(1)),test_gpt.c)
ifneq ($(T),)
  holders := $(shell grep -l 'TEST$(open)$(T)' test_gpt.c test_gpt.cu dev/test/test_*.c dev/test/cuda/test_*.cu; \
                     grep -l '^test_$(T)' $(TEST_SCRIPTS))
  chosen = $(foreach p,$(1),$(if $(or $(filter $(T)%,$(call stem,$(p))),$(filter $(holders),$(call source_of,$(p)))),$(p)))
  override TESTS := $(call chosen,$(TESTS))
  override EMU_TESTS := $(call chosen,$(EMU_TESTS))
  override TEST_SCRIPTS := $(foreach s,$(TEST_SCRIPTS),$(if $(or $(filter $(T)%,$(notdir $(s))),$(filter $(holders),$(s))),$(s)))
  NEEDED = $(if $(filter %/cli_test.sh %/cuda_test.sh %/runs_test.sh %/scripts_test.sh,$(TEST_SCRIPTS)),$(PROGRAMS)) \
           $(if $(filter %/libcmuon_test.sh,$(TEST_SCRIPTS)),$(LIBRARY)) \
           $(if $(filter dev/test/faults/%,$(TEST_SCRIPTS)),$(PROGRAMS) $(FAULTS)) \
           $(if $(filter %/cuda_test.sh,$(TEST_SCRIPTS)),$(EMU_PROGRAMS))
else
  NEEDED = $(PROGRAMS) $(LIBRARY) $(EMU_PROGRAMS) $(FAULTS)
endif

# The scripts and programs that run longest begin first.
test: $(NEEDED) $(TESTS) $(EMU_TESTS)
	@T='$(T)' SHIM='$(FAULTS)' sh dev/test/run.sh $(TEST_SCRIPTS) $(TESTS) $(EMU_TESTS)

# Everyday work: compiles and runs in under 30 seconds on two cores, from nothing. Nearly all of the CPU's
# tests in fp32, the programs from end to end, and some kernels on the emulator, without the slow tests.
CHECK_TESTS = $(filter-out %_double $(patsubst %,$(BUILD)/test_%,msign composed gemm speedrun),$(TESTS)) \
              $(filter %/test_layers_fp32 %/test_gemm,$(EMU_TESTS))
check: $(CHECK_TESTS) $(BUILD)/train_gpt $(BUILD)/generate
	@QUICK=1 TRAIN_GPT=$(BUILD)/train_gpt GENERATE=$(BUILD)/generate sh dev/test/run.sh dev/test/cli_test.sh $(CHECK_TESTS)

# The whole suite under AddressSanitizer and UndefinedBehaviorSanitizer, and the files that fuzzers found.
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all
test-asan:
	@$(MAKE) --no-print-directory BUILD=build/asan ONEDNN=no OPT="-O1 -g -march=native $(SANITIZE)" \
	  EMU_OPT="-O1 -g $(SANITIZE)" asan-programs
asan-programs: $(TESTS) $(EMU_TESTS) $(FUZZ_TESTS) $(BUILD)/train_gpt $(BUILD)/generate $(EMU_PROGRAMS)
	@BUILD=$(BUILD) TRAIN_GPT=$(BUILD)/train_gpt GENERATE=$(BUILD)/generate \
	  sh dev/test/run.sh $(TESTS) $(EMU_TESTS) $(FUZZ_TESTS) $(filter %/cli_test.sh %/cuda_test.sh,$(TEST_SCRIPTS))

# Fuzzing, dev/fuzz: FUZZ_SECONDS for each target under the same sanitizers, by clang's libFuzzer.
# make fuzz FUZZ="log flags" chooses targets. The targets run without OpenMP.
FUZZ_SECONDS ?= 20
fuzz_build = $(CC) $(1) $(filter-out -fopenmp,$(CFLAGS)) -Wno-unknown-pragmas -DFUZZ_TARGET='"$*"' $(deps) $< -o $@ $(LDLIBS)
FUZZ_CC = $(if $(is_clang),$(CC),clang)
fuzz:
	@printf 'int LLVMFuzzerTestOneInput(void *p, long n) { return !p && n; }\n' | \
	  $(FUZZ_CC) -fsanitize=fuzzer,address -x c - -o /dev/null 2>/dev/null || \
	  { echo "error: make fuzz needs clang and its fuzzer library (Debian: apt-get install clang libclang-rt-dev);" \
	    "make fuzz-check needs neither" >&2; exit 1; }
	@$(MAKE) --no-print-directory CC=$(FUZZ_CC) BUILD=build/fuzz ONEDNN=no OPT="-O1 -g -march=native $(SANITIZE)" fuzz-programs
fuzz-programs: $(FUZZ:%=$(BUILD)/fuzz_%)
	@sh dev/fuzz/run.sh $(FUZZ_SECONDS) $^
$(BUILD)/fuzz_%: dev/fuzz/fuzz_%.c | $(BUILD)
	$(call fuzz_build,$(OPT) -fsanitize=fuzzer -DFUZZ_ENGINE)
# The committed inputs once, which needs no libFuzzer.
fuzz-check:
	@$(MAKE) --no-print-directory BUILD=build/asan ONEDNN=no OPT="-O1 -g -march=native $(SANITIZE)" fuzz-tests
fuzz-tests: $(FUZZ_TESTS)
	@sh dev/test/run.sh $^
$(BUILD)/test_fuzz_%: dev/fuzz/fuzz_%.c | $(BUILD)
	$(call fuzz_build,$(TEST_OPT))

# The CPU's tests, and a small run from start to samples, under ThreadSanitizer. It needs clang and LLVM's OpenMP with
# Archer, which tells the sanitizer about OpenMP's barriers; GCC's libgomp cannot, so every loop would be a false report.
# Left out: library, which starts no thread, and the double builds, which run the same loops.
TSAN_TESTS = $(filter-out library,$(patsubst dev/test/test_%.c,%,$(wildcard dev/test/test_*.c))) gpt
test-tsan:
	@$(MAKE) --no-print-directory CC=clang BUILD=build/tsan ONEDNN=no \
	  OPT="-O1 -g -march=native -fsanitize=thread" tsan-programs
tsan-programs: $(TSAN_TESTS:%=$(BUILD)/test_%) $(BUILD)/train_gpt $(BUILD)/generate
	@CC=$(CC) TRAIN_GPT=$(BUILD)/train_gpt GENERATE=$(BUILD)/generate sh dev/test/tsan.sh $(filter $(BUILD)/test_%,$^)

# Injected faults: kills, power cuts, calls that fail, locks. There are KILLS kills; one in CALLS of the calls fails,
# so that CALLS=1 is every call. SEED repeats the random moments.
KILLS ?= 100
CALLS ?= 10
test-faults: $(PROGRAMS) $(FAULTS)
	@KILLS=$(KILLS) CALLS=$(CALLS) SHIM='$(FAULTS)' T='$(T)' sh dev/test/run.sh $(filter dev/test/faults/%,$(TEST_SCRIPTS))

bench: train_gpt $(patsubst dev/bench/%.c,$(BUILD)/bench_%,$(wildcard dev/bench/*.c))
	@for b in $(filter $(BUILD)/%,$^); do echo "== $$b"; $$b; done

# ---- The source

SOURCES = $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' | grep -v unicode_classes.h)
format:
	clang-format -i $(SOURCES)
format-check:
	@sh scripts/format_check.sh
analyze:
	@CC="$(CC)" sh dev/analyze/run.sh
# For clangd and other tools that ask how a file is compiled.
compile_commands.json:
	@$(MAKE) --no-print-directory -nB $(PROGRAMS) $(TESTS) $(EMU_TESTS) $(EMU_PROGRAMS) $(BUILD)/cmuon.o \
	  $(patsubst dev/bench/%.c,$(BUILD)/bench_%,$(wildcard dev/bench/*.c)) | sh scripts/compile_commands.sh >$@
	@echo "$@: $$(grep -c '"file"' $@) commands"

# The source of this version as an archive: the last commit, or the tree where there is no git.
DIST = cm.c-$(VERSION)
dist:
	@if git rev-parse --git-dir >/dev/null 2>&1; then git archive --prefix=$(DIST)/ HEAD; \
	  else sed 's|^/|./|; s|/$$||' .gitignore | tar c --exclude-from=- --exclude='./*.tar.gz.tmp' \
	    --transform='s|^\.|$(DIST)|' --sort=name --owner=0 --group=0 .; fi | gzip -n9 >$(DIST).tar.gz.tmp
	@mv $(DIST).tar.gz.tmp $(DIST).tar.gz && echo $(DIST).tar.gz

clean:
	rm -rf $(BUILD) $(PROGRAMS) $(LIBRARY) $(CUDA_PROGRAMS) test_gpt_cuda test_gpt_cuda_fp32 compile_commands.json

help:
	@echo "make train       train on TinyShakespeare, then sample (about three minutes on two cores)"
	@echo "make             build train_gpt, generate and data/tokenize"
	@echo "make check       the tests of everyday work, half a minute"
	@echo "make test        every test; make test T=checkpoint: the tests whose name begins so"
	@echo "make test-asan   every test under AddressSanitizer and UBSan; make test-tsan: the CPU's tests under ThreadSanitizer"
	@echo "make fuzz        fuzzing by clang's libFuzzer (FUZZ_SECONDS=600 for each target, FUZZ=\"log flags\"); make fuzz-check:"
	@echo "                 the committed inputs once, without libFuzzer"
	@echo "make test-faults kills, power cuts, failing calls (KILLS=1000 kills; CALLS=1: every call fails once; SEED=)"
	@echo "make cuda        train_gpt_cuda, train_gpt_cuda_fp32 and generate_cuda for NVIDIA GPUs (ARCH=sm_80, NVCC=, CUDA_WHEELS=)"
	@echo "make test_gpt_cuda  the tests that run on a GPU; bash dev/gpu/check.sh runs them and more"
	@echo "make bench       benchmarks of the parts"
	@echo "make libcmuon.so the optimizer as a library (also libcmuon.a); make install PREFIX=..."
	@echo "make format      clang-format; make format-check checks; make analyze: gcc's analyzer, cppcheck, clang-tidy"
	@echo "make compile_commands.json  for clangd; make dist: an archive of the source"
	@echo "make clean       remove what was built (runs/ and data/ stay)"
	@echo "options: CC=clang, ONEDNN=no (built-in matrix product), OPT='-O2' (portable code), WERROR=-Werror (as in CI)"
