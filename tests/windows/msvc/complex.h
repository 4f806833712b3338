/* complex.h: the types of Microsoft's own, for headers that look for them. */
#ifndef COMPLEX_H
#define COMPLEX_H

typedef struct {
    double _Val[2];
} _Dcomplex, _Lcomplex;
typedef struct {
    float _Val[2];
} _Fcomplex;

#endif
