/*
train_gpt.c on an NVIDIA GPU: the same program over the CUDA backend. Build it with `make
train_gpt_cuda` (bf16 activations, fp32 master weights) or `make train_gpt_cuda_fp32`.
*/
#include "llmc/cuda/backend.cuh"
#define BACKEND_READY
#include "train_gpt.c"
