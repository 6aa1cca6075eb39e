# make train    trains a GPT on TinyShakespeare and samples from it
# make test     builds and runs every test
# make help     the other targets

ifeq ($(origin CC),default)
  CC = gcc
endif
BUILD ?= build
OPT ?= -O3 -march=native
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror
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
PROGRAMS = train_gpt generate data/tokenize
TESTS = $(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c)) $(BUILD)/test_gpt $(BUILD)/test_gpt_double \
        $(BUILD)/test_optim_double $(BUILD)/test_variants_double $(BUILD)/test_msign_double $(BUILD)/test_attention_double $(BUILD)/test_gemm_double

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

$(BUILD)/test_generate: generate.c train_gpt.c
$(BUILD)/test_composed: train_gpt.c

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

# The main job. RUN names the run folder, ARGS adds flags: make train RUN=b ARGS="--seed 2".
RUN ?= shakespeare
train: train_gpt generate
	@sh scripts/train_shakespeare.sh $(RUN) $(ARGS)

test: $(PROGRAMS) $(TESTS) $(LIBRARY)
	@sh dev/test/run.sh $(TESTS) dev/test/*_test.sh

# The whole suite once more under AddressSanitizer and UndefinedBehaviorSanitizer.
test-asan:
	@$(MAKE) --no-print-directory BUILD=build/asan ONEDNN=no \
	  OPT="-O1 -g -march=native -fsanitize=address,undefined -fno-sanitize-recover=all" asan-programs
asan-programs: $(TESTS) $(BUILD)/train_gpt $(BUILD)/generate
	@TRAIN_GPT=$(BUILD)/train_gpt GENERATE=$(BUILD)/generate sh dev/test/run.sh $(TESTS) dev/test/cli_test.sh

bench: train_gpt $(patsubst dev/bench/%.c,$(BUILD)/bench_%,$(wildcard dev/bench/*.c))
	@for b in $(filter $(BUILD)/%,$^); do echo "== $$b"; $$b; done

clean:
	rm -rf $(BUILD) $(PROGRAMS) $(LIBRARY)

help:
	@echo "make train       train on TinyShakespeare, then sample (about three minutes on two cores)"
	@echo "make             build train_gpt, generate and data/tokenize"
	@echo "make test        every test; make test-asan: under sanitizers"
	@echo "make bench       benchmarks of the parts"
	@echo "make libcmuon.so the optimizer as a library (also libcmuon.a); make install PREFIX=..."
	@echo "make clean       remove what was built (runs/ and data/ stay)"
	@echo "options: CC=clang, ONEDNN=no (built-in matrix product), OPT='-O2' (portable code)"
