// Jittor's misc/cuda_limits.h takes eight integer limits from NVIDIA's image-processing headers and nothing else.
// With them here, no kernel needs those headers, which pip wheels and many images lack.
#pragma once
#define NPP_MIN_32U 0U
#define NPP_MAX_32U 4294967295U
#define NPP_MIN_32S (-2147483647 - 1)
#define NPP_MAX_32S 2147483647
#define NPP_MIN_64U 0ULL
#define NPP_MAX_64U 18446744073709551615ULL
#define NPP_MIN_64S (-9223372036854775807LL - 1)
#define NPP_MAX_64S 9223372036854775807LL
