/* Builds with -Idev/emu find this file instead of CUDA's: emu.h has the run-time library. */
#include "emu.h"
