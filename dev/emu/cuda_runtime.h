/* Found instead of CUDA's header where a build says -Idev/emu: the emulator has the run-time library. */
#include "emu.h"
