set -eu
cd "$(dirname "$0")/.."
. scripts/pretrain.sh
set_flags --preset llama --layers 24 --width 1024 --heads 16 --ff-width 2752 --tied on --batch-size 32 --total-batch-tokens 524288 --steps 19073 \
    --warmup 700 --data-order sequential --val-every 250 --val-tokens 10485760 --checkpoint-every 250
set_arm "${1:-}" 0.02 "--weight-decay 0.01" "--lr 0.0003 --weight-decay 0.1"
arm=$1
shift
pretrain "340M-$arm" fineweb10B "$@"
