/* A vector of floats in AVX-512, whichever way they are multiplied. No header guard: it is read for each. */
#define SINGLE 1
#define SMALLER(a, b) (vec)_mm512_min_ps((__m512)(a), (__m512)(b))
#define LOAD_FIRST(from, count) _mm512_maskz_loadu_ps((1 << (count)) - 1, from)
#define STORE_FIRST(x, to, count) _mm512_mask_storeu_ps(to, (1 << (count)) - 1, (__m512)(x))
#define LOAD_HALF(from) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from)))
#define STORE_HALF(x, to) _mm256_storeu_si256((__m256i *)(to), _mm512_cvtps_ph((__m512)(x), 0))
