# The instruction sets of each kind of machine, the portable one first, and the compiler's flags of
# each set. For make, and for setup.py, which reads lines "NAME = words" alone.
ISAS_x86_64 = base avx2 avx512 avx512_bf16 amx
ISAS_aarch64 = base neon
FLAGS_avx2 = -mavx2 -mfma
FLAGS_avx512 = -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512
FLAGS_avx512_bf16 = -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512 -mavx512bf16
FLAGS_amx = -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512 -mavx512bf16 -mamx-tile -mamx-bf16
