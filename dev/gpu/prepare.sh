#!/bin/sh
# Builds the programs of a visit to a GPU on this machine and packs them into dev/gpu/carry/prebuilt.tar.gz.
# dev/gpu/check.sh takes them if it cannot build them itself in time. Needs nvcc, but no GPU. The CPU programs
# run on any x86-64 of the last ten years (AVX2) and need no oneDNN.
# usage: sh dev/gpu/prepare.sh [ARCH [TARGET...]]    ARCH is sm_90 (H100, H200), sm_80 (A100), ...
set -eu
cd "$(dirname "$0")/../.."
arch=${1:-sm_90}
[ $# -eq 0 ] || shift
build=build/prebuilt-$arch
if [ $# -eq 0 ]; then
    for test in dev/test/cuda/test_*.cu; do
        name=$(basename "$test" .cu)
        case $name in
        test_emu) ;;
        test_cudnn) set -- "$@" "$build/cuda/$name" ;;
        *) set -- "$@" "$build/cuda/$name" "$build/cuda/${name}_fp32" ;;
        esac
    done
    set -- train_gpt_cuda train_gpt_cuda_fp32 generate_cuda test_gpt_cuda test_gpt_cuda_fp32 $build/train_gpt $build/generate \
        $build/cuda/bench_cuda "$@"
fi
# Programs outside of $build may be of another architecture, which make does not see.
for program in "$@"; do case $program in */*) ;; *) rm -f "$program" ;; esac; done
portable="-O2 $([ "$(uname -m)" != x86_64 ] || echo -march=x86-64-v3)"
make BUILD=$build ONEDNN=no OPT="$portable" TEST_OPT="$portable" ARCH="$arch" "$@"
pack=$build/pack
rm -rf $pack
mkdir -p $pack dev/gpu/carry
for program in "$@"; do cp "$program" $pack/; done
${CC:-cc} -O2 dev/gpu/shard.c -o $pack/shard -lm
echo "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' and changes'), $arch" >$pack/commit
tar -czf dev/gpu/carry/prebuilt.tar.gz -C $pack .
ls -l dev/gpu/carry/prebuilt.tar.gz
