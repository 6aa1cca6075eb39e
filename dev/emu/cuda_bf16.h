/* Found instead of CUDA's header where a build says -Idev/emu: the emulator has the type, too. */
#include "emu.h"
