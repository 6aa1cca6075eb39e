# make train    trains a GPT on TinyShakespeare and samples from it
# make test     builds and runs every test
# make help     the other targets

ifeq ($(origin CC),default)
  CC = gcc
endif
BUILD ?= build
OPT ?= -O3 -march=native
# make WERROR= goes on where another compiler has other warnings.
WERROR ?= -Werror
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes $(WERROR)
# The model's loops vectorise without -ffast-math, which would break the checks for NaN.
CFLAGS ?= $(OPT)
override CFLAGS += -std=gnu11 -I. $(WARN) -fno-math-errno -fno-trapping-math -ffp-contract=fast
# clang says where a loop did not vectorise, as those over libm's exp in the double build.
override CFLAGS += $(if $(findstring clang,$(shell $(CC) --version)),-Wno-pass-failed)
LDLIBS += -lm -lpthread
SHELL = /bin/sh
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)

# What this machine has, asked of the compiler itself.
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

HEADERS = $(wildcard llmc/*.h llmc/cpu/*.h llmc/optim/*.h dev/test/*.h)
CUDA_HEADERS = $(HEADERS) $(wildcard llmc/cuda/*.cuh llmc/cuda/*.h dev/emu/*.h dev/test/cuda/*.h)
PROGRAMS = train_gpt generate data/tokenize
TESTS = $(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c)) $(BUILD)/test_gpt $(BUILD)/test_gpt_double \
        $(BUILD)/test_optim_double $(BUILD)/test_variants_double $(BUILD)/test_msign_double $(BUILD)/test_attention_double $(BUILD)/test_gemm_double

# The CUDA side without a GPU: our kernels on the emulator (dev/emu), in bf16 and in fp32, and with them
# the tests that the CPU has to pass.
EMU_KERNEL_TESTS = $(patsubst dev/test/cuda/test_%.cu,%,$(wildcard dev/test/cuda/test_*.cu))
EMU_TESTS = $(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%) \
            $(patsubst %,$(BUILD)/emu/test_%_fp32,$(filter-out emu cudnn cudnn_api,$(EMU_KERNEL_TESTS)) gpt optim variants msign) \
            $(BUILD)/emu/test_gpt_cuda $(BUILD)/emu/test_gpt_cuda_fp32
EMU_PROGRAMS = $(BUILD)/emu/train_gpt $(BUILD)/emu/train_gpt_fp32 $(BUILD)/emu/generate_fp32

LIBRARY = libcmuon.so libcmuon.a cmuon.pc

.PHONY: all train test test-asan asan-programs bench install clean help
all: $(PROGRAMS)

train_gpt: train_gpt.c $(HEADERS)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

generate: generate.c train_gpt.c $(HEADERS)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

data/tokenize: data/tokenize.c $(HEADERS)
	$(CC) $(CFLAGS) $< -o $@ $(LDLIBS)

$(BUILD)/train_gpt $(BUILD)/generate: $(BUILD)/%: %.c train_gpt.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

$(BUILD)/test_gpt: test_gpt.c train_gpt.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

# Finite differences need double precision throughout.
$(BUILD)/test_gpt_double: test_gpt.c train_gpt.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) -DCM_DOUBLE $< -o $@ $(LDLIBS)

$(BUILD)/test_%_double: dev/test/test_%.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) -DCM_DOUBLE $< -o $@ $(LDLIBS)

# The optimizers' tests are long to compile; and what holds at one level of optimisation should at another.
$(BUILD)/test_optim $(BUILD)/test_optim_double $(BUILD)/test_variants $(BUILD)/test_variants_double \
  $(BUILD)/test_cmuon: OPT := $(subst -O3,-O2,$(OPT))

$(BUILD)/test_generate: generate.c train_gpt.c
$(BUILD)/test_composed: train_gpt.c
$(BUILD)/test_library: llmc/cuda/library.h
$(BUILD)/test_library: LDLIBS += -ldl

$(BUILD)/test_%: dev/test/test_%.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

$(BUILD)/bench_%: dev/bench/%.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) $(DNNL) $< -o $@ $(DNNL_LIBS) $(LDLIBS)

# libcmuon, the optimizer for other programs: only what cmuon.h marks is visible. Code of a library
# stays loaded (nodelete), because threads that end run its clean-up.
$(BUILD)/cmuon.o: llmc/cmuon.c $(HEADERS) | $(BUILD)
	$(CC) $(CFLAGS) -fPIC -fvisibility=hidden -c $< -o $@

libcmuon.so: $(BUILD)/cmuon.o
	$(CC) $(CFLAGS) -shared -Wl,-soname,libcmuon.so -Wl,-z,nodelete $< -o $@ $(LDLIBS)

libcmuon.a: $(BUILD)/cmuon.o
	rm -f $@
	$(AR) rcs $@ $<

PREFIX ?= /usr/local
cmuon.pc: Makefile
	@printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' \
	  'Name: cmuon' 'Description: Compositional Muon and Muon, the optimizers, in C' 'Version: 1.0' \
	  'Libs: -L$${libdir} -lcmuon' 'Libs.private: $(filter -fopenmp,$(CFLAGS)) $(LDLIBS)' \
	  'Cflags: -I$${includedir}' >$@

# make install PREFIX=$$HOME/.local; DESTDIR is put before it.
install: $(LIBRARY)
	mkdir -p $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	install -m 755 libcmuon.so $(DESTDIR)$(PREFIX)/lib
	install -m 644 libcmuon.a $(DESTDIR)$(PREFIX)/lib
	sed 's|^prefix=.*|prefix=$(PREFIX)|' cmuon.pc >$(DESTDIR)$(PREFIX)/lib/pkgconfig/cmuon.pc
	install -m 644 llmc/cmuon.h $(DESTDIR)$(PREFIX)/include

$(BUILD)/test_cmuon: llmc/cmuon.c

$(BUILD):
	mkdir -p $(BUILD)

# ---- CUDA on the emulator: needs a C++ compiler, no CUDA and no GPU
CXX = $(if $(findstring clang,$(CC)),clang++,g++)
TEST_SCRIPTS = $(wildcard dev/test/*_test.sh)
ifneq ($(shell command -v $(CXX) >/dev/null && echo yes),yes)
  EMU_TESTS =
  EMU_PROGRAMS =
  TEST_SCRIPTS := $(filter-out %/cuda_test.sh,$(TEST_SCRIPTS))
  $(info note: no $(CXX), so the tests of the CUDA kernels are left out (Debian: apt-get install g++))
endif
EMU_OPT ?= -O1
EMU_FLAGS = -std=c++20 $(EMU_OPT) -Wno-missing-field-initializers -I. -Idev/emu -Wall -Wextra -Wshadow $(WERROR) -Wno-unknown-pragmas -fno-math-errno -fno-strict-aliasing -ffp-contract=off \
            -DCM_CUDA -DCM_EMU
emu_precision = $(if $(findstring _fp32,$@),-DCM_FP32)
emu_build = $(CXX) $(EMU_FLAGS) $(emu_precision) -x c++ $< -x none $(filter %.o,$^) -o $@ $(LDLIBS)

$(BUILD)/emu:
	mkdir -p $@
$(BUILD)/twin.o: dev/test/cuda/twin.c $(HEADERS) dev/test/cuda/twin.h | $(BUILD)
	$(CC) $(CFLAGS) -c $< -o $@
$(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%): $(BUILD)/emu/test_%: dev/test/cuda/test_%.cu $(BUILD)/twin.o $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build) $(filter -fopenmp,$(CFLAGS))
$(EMU_KERNEL_TESTS:%=$(BUILD)/emu/test_%_fp32): $(BUILD)/emu/test_%_fp32: dev/test/cuda/test_%.cu $(BUILD)/twin.o $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build) $(filter -fopenmp,$(CFLAGS))
# cuDNN's header, where the toolkit has it, is what this test compares with.
$(BUILD)/emu/test_cudnn_api: EMU_FLAGS += $(addprefix -isystem ,$(wildcard $(cuda_root)/include))
$(BUILD)/emu/test_gpt_fp32: test_gpt.c train_gpt.c $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build)
$(BUILD)/emu/test_gpt_cuda $(BUILD)/emu/test_gpt_cuda_fp32: test_gpt.cu train_gpt.c $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build)
$(BUILD)/emu/test_%_fp32: dev/test/test_%.c train_gpt.c $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build)
$(BUILD)/emu/train_gpt $(BUILD)/emu/train_gpt_fp32: train_gpt.cu train_gpt.c $(CUDA_HEADERS) | $(BUILD)/emu
	$(emu_build)
$(BUILD)/emu/generate $(BUILD)/emu/generate_fp32: generate.cu generate.c train_gpt.c $(CUDA_HEADERS) | $(BUILD)/emu
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
NVCCFLAGS = -std=c++20 $(NVCC_OPT) -arch=$(cuda_arch) -I. $(CUBLAS_FLAGS) -DCM_CUDA -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers,-Wno-unknown-pragmas \
            $(if $(WERROR),-Werror all-warnings) -diag-suppress 177 $(if $(filter -fopenmp,$(CFLAGS)),-Xcompiler -fopenmp)
CUDA_LIBS = $(foreach d,$(cuda_folders),-L$(d) -Xlinker -rpath -Xlinker $(d)) \
            $(if $(filter %.so,$(or $(cublas),.so)),-lcublasLt,-l:$(notdir $(cublas))) -ldl
nvcc_build = $(if $(NVCC),,$(error no nvcc: install the CUDA Toolkit, 12.4 or later, or name it with NVCC=/path/to/nvcc))\
             $(NVCC) $(NVCCFLAGS) $(emu_precision) $< $(filter %.o,$^) -o $@ $(CUDA_LIBS)
CUDA_PROGRAMS = train_gpt_cuda train_gpt_cuda_fp32 generate_cuda
CUDA_KERNEL_TESTS = $(filter-out emu,$(EMU_KERNEL_TESTS))

.PHONY: cuda
cuda: $(CUDA_PROGRAMS)

train_gpt_cuda train_gpt_cuda_fp32: train_gpt.cu train_gpt.c $(CUDA_HEADERS)
	$(nvcc_build)
generate_cuda: generate.cu generate.c train_gpt.c $(CUDA_HEADERS)
	$(nvcc_build)
$(BUILD)/cuda:
	mkdir -p $@
$(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%): $(BUILD)/cuda/test_%: dev/test/cuda/test_%.cu $(BUILD)/twin.o $(CUDA_HEADERS) | $(BUILD)/cuda
	$(nvcc_build)
$(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%_fp32): $(BUILD)/cuda/test_%_fp32: dev/test/cuda/test_%.cu $(BUILD)/twin.o $(CUDA_HEADERS) | $(BUILD)/cuda
	$(nvcc_build)
$(BUILD)/cuda/bench_cuda: dev/bench/cuda.cu $(CUDA_HEADERS) | $(BUILD)/cuda
	$(nvcc_build)
test_gpt_cuda test_gpt_cuda_fp32: test_gpt.cu train_gpt.c $(CUDA_HEADERS)
	$(nvcc_build)
# All that runs on a device to test: the model's program and one for each file of kernels, in both precisions.
test_gpt_cuda: | test_gpt_cuda_fp32 $(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%) $(CUDA_KERNEL_TESTS:%=$(BUILD)/cuda/test_%_fp32)

# The main job. RUN names the run folder, ARGS adds flags: make train RUN=b ARGS="--seed 2".
RUN ?= shakespeare
train: train_gpt generate
	@sh scripts/train_shakespeare.sh $(RUN) $(ARGS)

test: $(PROGRAMS) $(TESTS) $(LIBRARY) $(EMU_TESTS) $(EMU_PROGRAMS)
	@sh dev/test/run.sh $(TEST_SCRIPTS) $(TESTS) $(EMU_TESTS)

# The whole suite once more under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan:
	@$(MAKE) --no-print-directory BUILD=build/asan ONEDNN=no \
	  OPT="-O1 -g -march=native -fsanitize=address,undefined -fno-sanitize-recover=all" \
	  EMU_OPT="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" asan-programs
asan-programs: $(TESTS) $(EMU_TESTS) $(EMU_PROGRAMS) $(BUILD)/train_gpt $(BUILD)/generate
	@BUILD=$(BUILD) TRAIN_GPT=$(BUILD)/train_gpt GENERATE=$(BUILD)/generate \
	  sh dev/test/run.sh $(TESTS) $(EMU_TESTS) $(filter %/cli_test.sh %/cuda_test.sh,$(TEST_SCRIPTS))

bench: train_gpt $(patsubst dev/bench/%.c,$(BUILD)/bench_%,$(wildcard dev/bench/*.c))
	@for b in $(filter $(BUILD)/%,$^); do echo "== $$b"; $$b; done

clean:
	rm -rf $(BUILD) $(PROGRAMS) $(LIBRARY) $(CUDA_PROGRAMS) test_gpt_cuda test_gpt_cuda_fp32

help:
	@echo "make train       train on TinyShakespeare, then sample (about three minutes on two cores)"
	@echo "make             build train_gpt, generate and data/tokenize"
	@echo "make test        every test; make test-asan: under sanitizers"
	@echo "make cuda        train_gpt_cuda, train_gpt_cuda_fp32 and generate_cuda for NVIDIA GPUs (ARCH=sm_80, NVCC=, CUDA_WHEELS=)"
	@echo "make test_gpt_cuda  the tests that run on a GPU; bash dev/gpu/check.sh runs them and more"
	@echo "make bench       benchmarks of the parts"
	@echo "make libcmuon.so the optimizer as a library (also libcmuon.a); make install PREFIX=..."
	@echo "make clean       remove what was built (runs/ and data/ stay)"
	@echo "options: CC=clang, ONEDNN=no (built-in matrix product), OPT='-O2' (portable code), WERROR= (warnings are no errors)"
