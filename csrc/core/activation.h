/* activation.h: the activations of the feed-forward layer, each with its derivative (slope).

   A function returns both, since they share an exponential; if only one is used, the compiler
   removes the other. Values are accurate to a few units in the last place, except in the far tail
   of gelu_new, whose exponent is itself rounded: relative error 1e-5 in float. NaN stays NaN. */
#ifndef RF_ACTIVATION_H
#define RF_ACTIVATION_H

#include "vec.h"

typedef struct {
    vec value, slope;
} curve;

static inline vec vabs(vec x) {
    return (vec)((ivec)x & ~(ivec)vset1((real)-0.0));
}

static inline vec vcopysign(vec magnitude, vec sign) {
    return (vec)((ivec)magnitude | ((ivec)sign & (ivec)vset1((real)-0.0)));
}

/* min(x, limit), and NaN for NaN: vmax returns its second operand if that is NaN. */
static inline vec at_most(vec x, real limit) {
    return -vmax(vset1(-limit), -x);
}

static inline curve relu(vec x) {
    const vec zero = {0};
    return (curve){vmax(zero, x), vselect(x <= zero, zero, vset1(1))};
}

/* 1 / (1 + exp(-x)); the slope is computed without cancellation. */
static inline curve sigmoid(vec x) {
    const vec e = vec_exp(-vabs(x)), r = (real)1 / (e + (real)1);
    return (curve){vselect(x < 0, e * r, r), e * r * r};
}

static inline curve silu(vec x) {
    const curve s = sigmoid(x);
    return (curve){x * s.value, s.value + x * s.slope};
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x sigmoid(2 sqrt(2/pi) (...)). Past 32 the
   sigmoid is 0 or 1 in both types, and the clamp keeps the powers finite. */
static inline curve gelu_new(vec x) {
    const real a = (real)1.595769121605730712, b = (real)(1.595769121605730712 * 0.044715);
    const vec c = vcopysign(at_most(vabs(x), 32), x), square = c * c;
    const curve s = sigmoid(c * (square * b + a));
    return (curve){x * s.value, s.value + c * s.slope * (square * (3 * b) + a)};
}

/* exp(x^2/2) (1 - Phi(x)) for x >= 0, with Phi the normal distribution: decays slowly and smoothly,
   so that multiplied by x + 4 it is close to a polynomial in t = (x - 4) / (x + 4), t in [-1, 1).
   The mapping is that of Shepherd and Laframboise (1981) for erfc; coefficients interpolate at
   Chebyshev nodes, relative error 1.4e-8 (float), 1.6e-16 (double). */
static inline vec normal_tail(vec x) {
    static const real float_terms[] = {
        0.7552851386,    -0.6078966285,   0.3871366583,   -0.1865224576,   0.06040711719,
        -0.007530432643, -0.003528608035, 0.001573495035, 0.0002055437349, -0.0001181354413};
    static const real double_terms[] = {
        0.755285130415751515,     -0.607896641971890761,   0.38713740074220861,
        -0.18652185795979419,     0.0603965748911891245,   -0.00754018896259258693,
        -0.00347969237110010153,  0.00163081839997289891,  0.000133344333166668089,
        -0.000231094491845193342, -1.90825614938584046e-6, 0.0000351426337882248641,
        7.16085889367428661e-7,   -5.91424847433284305e-6, -6.26657033731920189e-7,
        1.01092967869204779e-6,   2.64081611976420866e-7,  -1.43796159100648928e-7,
        -7.45424669769731032e-8,  7.63466781445939973e-9,  1.14988560660731655e-8,
        2.05457162840641022e-9};
    const real *coefficient = IS_FLOAT ? float_terms : double_terms;
    const int degree = IS_FLOAT ? 9 : 21;

    const vec q = (real)1 / (x + (real)4), t = (x - (real)4) * q;
    vec p = vset1(coefficient[degree]);
    for (int i = degree - 1; i >= 0; i--) p = p * t + coefficient[i];
    return p * q;
}

/* exp(-x^2/2) for 0 <= x < 64. Rounding x^2 would cost accuracy, up to 1e-5 in float, so x is split
   into a high part, whose square is exact, and a low part. */
static inline vec bell(vec x) {
    const real magic = IS_FLOAT ? (real)0x1.8p15 : (real)0x1.8p32;
    const vec high = (x + magic) - magic;
    const vec low = (x - high) * (x + high) * (real)-0.5; // at most 1/32
    const vec exp_low = ((low * (real)(1.0 / 6) + (real)0.5) * low + (real)1) * low + (real)1;
    return vec_exp(high * high * (real)-0.5) * exp_low;
}

/* x Phi(x), whose slope is Phi(x) + x phi(x). Past the clamp exp(-x^2/2) is 0. */
static inline curve gelu(vec x) {
    const vec size = at_most(vabs(x), IS_FLOAT ? 14 : 39);
    const vec e = bell(size), tail = e * normal_tail(size);
    const vec phi = vselect(x < 0, tail, (real)1 - tail);
    const vec density = e * (real)0.39894228040143267794;
    return (curve){x * phi, phi + vcopysign(size, x) * density};
}

/* tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), and slope 4 e / (1 + e)^2. Where 1 - e would
   cancel, it is the series z - z^2/2 + z^3/6 - ... in z = 2 |x|. */
static inline curve tanh_curve(vec x) {
    const vec z = vabs(x) * (real)2, e = vec_exp(-z), r = (real)1 / (e + (real)1);
    const int terms = IS_FLOAT ? 8 : 15;
    vec series = vset1(1);
    for (int i = terms; i > 1; i--) series = (real)1 - series * z * (real)(1.0 / i);
    const vec rise = vselect(z < (real)0.5, series * z, (real)1 - e);
    return (curve){vcopysign(rise * r, x), e * r * r * (real)4};
}

/* min(gelu(x), 10). The original also clamps at -10, which gelu never reaches. */
static inline curve gelu_10(vec x) {
    const vec zero = {0};
    const curve c = gelu(x);
    return (curve){at_most(c.value, 10), vselect(c.value > 10, zero, c.slope)};
}

/* The normal distribution function of mean mu, deviation sigma (Ma et al. 2022, section 3.4). */
static inline curve laplace(vec x) {
    const real mu = (real)0.707107, sigma = (real)0.282095;
    const vec z = (x - mu) / sigma;
    const vec size = at_most(vabs(z), IS_FLOAT ? 14 : 39);
    const vec e = bell(size), tail = e * normal_tail(size);
    return (curve){vselect(z < 0, tail, (real)1 - tail), e * (real)0.39894228040143267794 / sigma};
}

/* x sigmoid(1.702 x). */
static inline curve quick_gelu(vec x) {
    const vec z = x * (real)1.702;
    const curve s = sigmoid(z);
    return (curve){x * s.value, s.value + z * s.slope};
}

/* x tanh(log(1 + exp(x))) = x w / (w + 2) with w = exp(x) (exp(x) + 2). Past the clamp w / (w + 2)
   is 1, and the clamp keeps its square finite. */
static inline curve mish(vec x) {
    const vec e = vec_exp(at_most(x, IS_FLOAT ? 20 : 40));
    const vec w = e * (e + (real)2), r = (real)1 / (w + (real)2), t = w * r;
    return (curve){x * t, t + x * ((real)4 * e * (e + (real)1) * r * r)};
}

/* x times a ramp that is 0 up to -3 and 1 from 3 on. */
static inline curve hardswish(vec x) {
    const vec zero = {0}, ramp = at_most(vmax(zero, x + (real)3), 6) * (real)(1.0 / 6);
    const vec inside = x * (real)(1.0 / 3) + (real)0.5;
    return (curve){x * ramp, vselect(x <= -3, zero, vselect(x >= 3, vset1(1), inside))};
}

static inline curve leaky_relu(vec x) {
    const vec slope = vselect(x > 0, vset1(1), vset1((real)0.01));
    return (curve){x * slope, slope};
}

static inline curve relu6(vec x) {
    const curve c = relu(x);
    return (curve){at_most(c.value, 6), vselect(x >= 6, (vec){0}, c.slope)};
}

static inline curve relu2(vec x) {
    const vec zero = {0}, r = vmax(zero, x);
    return (curve){r * r, r * (real)2};
}

/* sqrt(log(1 + exp(x))). With e = exp(-|x|) the logarithm is max(x, 0) + log(1 + e), where log(1 +
   e) = 2 atanh(z) = 2 (z + z^3/3 + z^5/5 + ...) with z = e / (2 + e) <= 1/3. If it underflows,
   value and slope are 0. */
static inline curve sqrtsoftplus(vec x) {
    const vec zero = {0}, e = vec_exp(-vabs(x)), z = e / (e + (real)2), square = z * z;
    const int terms = IS_FLOAT ? 8 : 16;
    vec series = vset1((real)(1.0 / (2 * terms + 1)));
    for (int i = terms - 1; i >= 0; i--) series = series * square + (real)(1.0 / (2 * i + 1));
    vec root = vmax(zero, x) + z * series * (real)2;
    for (size_t i = 0; i < VEC_LANES; i++) root[i] = real_sqrt(root[i]);
    const vec s = vselect(x < 0, e, vset1(1)) / (e + (real)1);
    return (curve){root, s * (real)0.5 / vmax(vset1((real)1e-30), root)};
}

static inline curve activation_curve(rf_activation kind, vec x) {
    switch (kind) {
    case RF_RELU: return relu(x);
    case RF_GELU: return gelu(x);
    case RF_GELU_NEW: return gelu_new(x);
    case RF_SILU: return silu(x);
    case RF_TANH: return tanh_curve(x);
    case RF_GELU_10: return gelu_10(x);
    case RF_HARDSWISH: return hardswish(x);
    case RF_LAPLACE: return laplace(x);
    case RF_LEAKY_RELU: return leaky_relu(x);
    case RF_LINEAR: return (curve){x, vset1(1)};
    case RF_MISH: return mish(x);
    case RF_QUICK_GELU: return quick_gelu(x);
    case RF_RELU2: return relu2(x);
    case RF_RELU6: return relu6(x);
    case RF_SIGMOID: return sigmoid(x);
    case RF_SQRTSOFTPLUS: return sqrtsoftplus(x);
    }
    return (curve){x, x};
}

/* x = act(x), and dx *= act'(x) unless dx is NULL. `kind` is a constant where this is inlined. */
static ALWAYS_INLINE void activate_as(const rf_activation kind, real *restrict x, real *restrict dx,
                                      size_t n) {
    size_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        const curve c = activation_curve(kind, vload(x + i));
        vstore(x + i, c.value);
        if (dx) vstore(dx + i, vload(dx + i) * c.slope);
    }
    if (i < n) { // the last elements, in a partly filled vector
        const size_t bytes = (n - i) * sizeof(real);
        vec xs = {0}, dxs = {0};
        memcpy(&xs, x + i, bytes);
        const curve c = activation_curve(kind, xs);
        memcpy(x + i, &c.value, bytes);
        if (!dx) return;
        memcpy(&dxs, dx + i, bytes);
        dxs *= c.slope;
        memcpy(dx + i, &dxs, bytes);
    }
}

static void activate(rf_activation kind, real *x, real *dx, size_t n) {
    switch (kind) {
    case RF_RELU: activate_as(RF_RELU, x, dx, n); break;
    case RF_GELU: activate_as(RF_GELU, x, dx, n); break;
    case RF_GELU_NEW: activate_as(RF_GELU_NEW, x, dx, n); break;
    case RF_SILU: activate_as(RF_SILU, x, dx, n); break;
    case RF_TANH: activate_as(RF_TANH, x, dx, n); break;
    case RF_GELU_10: activate_as(RF_GELU_10, x, dx, n); break;
    case RF_HARDSWISH: activate_as(RF_HARDSWISH, x, dx, n); break;
    case RF_LAPLACE: activate_as(RF_LAPLACE, x, dx, n); break;
    case RF_LEAKY_RELU: activate_as(RF_LEAKY_RELU, x, dx, n); break;
    case RF_LINEAR: activate_as(RF_LINEAR, x, dx, n); break;
    case RF_MISH: activate_as(RF_MISH, x, dx, n); break;
    case RF_QUICK_GELU: activate_as(RF_QUICK_GELU, x, dx, n); break;
    case RF_RELU2: activate_as(RF_RELU2, x, dx, n); break;
    case RF_RELU6: activate_as(RF_RELU6, x, dx, n); break;
    case RF_SIGMOID: activate_as(RF_SIGMOID, x, dx, n); break;
    case RF_SQRTSOFTPLUS: activate_as(RF_SQRTSOFTPLUS, x, dx, n); break;
    }
}

#endif
