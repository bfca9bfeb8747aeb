# To be sourced, at the repository root, on a machine that reaches no package index: makes what
# `.whl/*.tar.xz` holds importable and points compilers at folders that can be kept.
#
#     . workloads/gpu/offline.sh
SITE=${SITE:-/tmp/site}
if [ ! -e "$SITE/.unpacked" ]; then
    mkdir -p "$SITE"
    for pack in .whl/*.tar.xz; do xz -dc "$pack" | tar -C "$SITE" -xf - & done
    wait
    touch "$SITE/.unpacked"
    if [ -e .whl/cache.tar.gz ]; then tar -C / -xzf .whl/cache.tar.gz; fi
fi
export PYTHONPATH="$PWD:$SITE" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OUTLINES_CACHE_DIR=/tmp/cache/outlines
export TVM_FFI_CACHE_DIR=/tmp/cache/tvm TRITON_CACHE_DIR=/tmp/cache/triton
export FLASHINFER_WORKSPACE_BASE=/tmp/cache/fi TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor
export TORCH_CUDA_ARCH_LIST=9.0a TVM_FFI_CUDA_ARCH_LIST=9.0a FLASHINFER_CUDA_ARCH_LIST=9.0a
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
mkdir -p /tmp/cache/tvm /tmp/cache/triton /tmp/cache/fi
