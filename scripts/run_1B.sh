set -eu
cd "$(dirname "$0")/.."
. scripts/pretrain.sh
set_flags --preset llama --layers 18 --width 2048 --heads 16 --ff-width 5504 --tied on --batch-size 16 --total-batch-tokens 1048576 --steps 66757 \
    --warmup 2000 --data-order sequential --val-every 500 --val-tokens 10485760 --checkpoint-every 250
set_arm "${1:-}" 0.02 "--weight-decay 0.003" "--lr 0.0002 --weight-decay 0.1"
arm=$1
shift
pretrain "1B-$arm" fineweb100B "$@"
