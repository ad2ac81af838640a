/* Halves and bfloats as floats, one at a time. */
#ifndef MANUAL_RNN_HALF_H
#define MANUAL_RNN_HALF_H
#include <stdint.h>
#include <string.h>
#include "types.h"

static const long WIDTH[TYPES] = {4, 8, 2, 2};

static inline float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of_bfloat(uint16_t x) { return float_of_bits((uint32_t)x << 16); }

/* To the nearest, ties to even. */
static inline uint16_t bfloat_of_float(float x)
{
    const uint32_t bits = bits_of_float(x);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* A half has 5 bits of exponent, biased by 15; one of 0 stands for multiples of 2^-24. */
static inline float float_of_half(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, size = x & 0x7fff;
    if (size < 0x0400)
        return float_of_bits(sign | bits_of_float((float)size * 0x1p-24f));
    return float_of_bits(sign | ((size << 13) + (size < 0x7c00 ? 112u << 23 : 224u << 23)));
}

static inline uint16_t half_of_float(float x)
{
    const uint32_t bits = bits_of_float(x), size = bits & 0x7fffffff;
    const uint16_t sign = (bits >> 16) & 0x8000;
    if (size > 0x7f800000)
        return sign | 0x7e00;
    if (size >= 0x477ff000) /* rounds to 2^16 */
        return sign | 0x7c00;
    if (size < 0x38800000) /* below 2^-14: rounded by an addition to 1/2, whose last bit is 2^-24 */
        return sign | (uint16_t)(bits_of_float(float_of_bits(size) + 0.5f) - bits_of_float(0.5f));
    return sign | (uint16_t)((size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13);
}
#endif
