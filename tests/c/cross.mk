# The core and what of the extension needs no Python for other systems, and the whole extension for
# Windows, compiled and not run: `make cross`, with the clang and the C headers of the PyPI package
# ziglang. OpenMP's header comes with no compiler of these: omp/omp.h is ours.
CSRC = ../../csrc
include $(CSRC)/variants/flags.mk
ZIG := $(shell python3 -c 'import ziglang; print(ziglang.__path__[0])')
CC = $(ZIG)/zig clang
CFLAGS = -std=c11 -O1 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror \
         -nostdlibinc -isystem $(ZIG)/lib/include
OPENMP = -fopenmp -Iomp
BUILD = build/cross

# Of each system: instruction sets, flags, folders of C headers. musl and MSVC differ from others in
# headers and in the interface of functions, so they compile fewer instruction sets.
SYSTEMS = macos-x86_64 macos-arm64 linux-arm64 musl-x86_64 musl-arm64 windows-gnu windows-msvc wasm
ISAS_macos-x86_64 = $(ISAS_x86_64)
ISAS_macos-arm64 = $(ISAS_aarch64)
ISAS_linux-arm64 = $(ISAS_aarch64)
ISAS_musl-x86_64 = base
ISAS_musl-arm64 = base
ISAS_windows-gnu = $(ISAS_x86_64)
ISAS_windows-msvc = base avx512
ISAS_wasm = base
TARGET_macos-x86_64 = --target=x86_64-apple-macos11 $(OPENMP)
TARGET_macos-arm64 = --target=arm64-apple-macos11 $(OPENMP)
TARGET_linux-arm64 = --target=aarch64-linux-gnu -D__GLIBC_MINOR__=28 $(OPENMP)
TARGET_musl-x86_64 = --target=x86_64-linux-musl $(OPENMP)
TARGET_musl-arm64 = --target=aarch64-linux-musl $(OPENMP)
TARGET_windows-gnu = --target=x86_64-windows-gnu $(OPENMP)
# MinGW's headers ask for a GNU C; the interface of a function is Microsoft's
TARGET_windows-msvc = --target=x86_64-windows-msvc -fgnuc-version=4.2.1 -fopenmp-simd -isystem ../windows/msvc
TARGET_wasm = --target=wasm32-wasip1 -msimd128 -fopenmp-simd
HEADERS_macos-x86_64 = any-darwin-any
HEADERS_macos-arm64 = any-darwin-any
HEADERS_linux-arm64 = aarch64-linux-gnu generic-glibc aarch64-linux-any any-linux-any
HEADERS_musl-x86_64 = x86_64-linux-musl generic-musl
HEADERS_musl-arm64 = aarch64-linux-musl generic-musl
HEADERS_windows-gnu = any-windows-any
HEADERS_windows-msvc = any-windows-any
HEADERS_wasm = wasm-wasi-musl generic-musl

POSIX = $(filter-out windows-% wasm,$(SYSTEMS))
WINDOWS = $(filter windows-%,$(SYSTEMS))
# the headers of this Python with our pyconfig.h, and those of NumPy's wheel for Windows
FOR_WINDOWS = $(BUILD)/headers
PYTHON = -isystem $(FOR_WINDOWS)/python -isystem $(FOR_WINDOWS)/numpy \
         -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION -DNPY_TARGET_VERSION=NPY_1_25_API_VERSION

.PHONY: all
all: $(foreach system,$(POSIX),$(BUILD)/$(system)/module/memory.o $(BUILD)/$(system)/module/system_posix.o) \
     $(foreach system,$(WINDOWS),$(patsubst $(CSRC)/module/%.c,$(BUILD)/$(system)/module/%.o, \
     $(filter-out %_posix.c,$(wildcard $(CSRC)/module/*.c))))

$(FOR_WINDOWS)/done: ../windows/pyconfig.h
	rm -rf $(@D)
	mkdir -p $(@D)
	cp -rL $$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))') $(@D)/python
	cp ../windows/pyconfig.h $(@D)/python
	cd $(@D) && python3 -m pip --quiet download --no-deps --only-binary=:all: --platform win_amd64 numpy
	cd $(@D) && python3 -m zipfile -e numpy-*.whl wheel && mv wheel/numpy/_core/include numpy && rm -r wheel *.whl
	touch $@

define rules
all: $(BUILD)/$(1)/select.o $(foreach isa,$(ISAS_$(1)),$(patsubst \
     $(CSRC)/variants/%.c,$(BUILD)/$(1)/%.o,$(wildcard $(CSRC)/variants/$(isa)_f[36]*.c)))
$(BUILD)/$(1)/%.o: $(CSRC)/variants/%.c $(wildcard $(CSRC)/*.h $(CSRC)/core/*) omp/omp.h cross.mk
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $(TARGET_$(1)) $(HEADERS_$(1):%=-isystem $(ZIG)/lib/libc/include/%) \
	    $(foreach isa,$(ISAS_$(1)),-DRF_HAVE_$(shell echo $(isa) | tr a-z A-Z)) \
	    $$(FLAGS_$$(patsubst %_f64,%,$$(patsubst %_f32,%,$$*))) -c $$< -o $$@
$(BUILD)/$(1)/module/%.o: $(CSRC)/module/%.c $(wildcard $(CSRC)/*.h $(CSRC)/module/*.h) omp/omp.h cross.mk \
                          $(if $(filter $(1),$(WINDOWS)),$(FOR_WINDOWS)/done)
	@mkdir -p $$(@D)
	$$(CC) $$(CFLAGS) $(TARGET_$(1)) $(HEADERS_$(1):%=-isystem $(ZIG)/lib/libc/include/%) $$(PYTHON) -c $$< -o $$@
endef
$(foreach system,$(SYSTEMS),$(eval $(call rules,$(system))))
