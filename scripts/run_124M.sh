set -eu
cd "$(dirname "$0")/.."
. scripts/pretrain.sh
set_flags --preset gpt2 --batch-size 64 --total-batch-tokens 524288 --steps 18865 --warmup 700 --lr-final 0 \
    --weight-decay-embed 0.1 --data-order sequential --val-every 250 --val-tokens 10485760 --checkpoint-every 250
set_arm "${1:-}" 0.02 "--weight-decay 0.01" "--lr 0.0006 --weight-decay 0.1"
arm=$1
shift
pretrain "124M-$arm" fineweb10B "$@"
