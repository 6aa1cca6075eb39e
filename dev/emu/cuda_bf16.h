/* Builds with -Idev/emu find this file instead of CUDA's: emu.h has __nv_bfloat16. */
#include "emu.h"
