/* The four functions a C compiler may call on its own; there is no C library to take them from. Hidden in the library, and
 * shared with the kernels. */
#ifndef TC_MEMORY_H
#define TC_MEMORY_H
#include <stddef.h>

#if defined(TC_HOSTED)
#include <string.h>
#else
#define TC_MEMORY __attribute__((visibility("hidden"), no_builtin)) /* no_builtin: the loops may not become calls of themselves */
typedef unsigned long word __attribute__((aligned(1), may_alias));

TC_MEMORY void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    char *d = to;
    const char *s = from;
#if defined(__x86_64__)
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
#else
    for (; n >= sizeof(word); n -= sizeof(word), d += sizeof(word), s += sizeof(word)) *(word *)d = *(const word *)s;
    while (n--) *d++ = *s++;
#endif
    return to;
}

TC_MEMORY void *memmove(void *to, const void *from, size_t n) {
    char *d = to;
    const char *s = from;
    if ((size_t)(d - s) >= n) return memcpy(to, from, n); /* also when d < s by less than n: memcpy goes upwards */
    for (; n >= sizeof(word); n -= sizeof(word)) *(word *)(d + n - sizeof(word)) = *(const word *)(s + n - sizeof(word));
    while (n--) d[n] = s[n];
    return to;
}

TC_MEMORY void *memset(void *to, int value, size_t n) {
    char *d = to;
#if defined(__x86_64__)
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
#else
    unsigned long pattern = (unsigned char)value * (~0ul / 255);
    for (; n >= sizeof(word); n -= sizeof(word), d += sizeof(word)) *(word *)d = pattern;
    while (n--) *d++ = (char)value;
#endif
    return to;
}

TC_MEMORY int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y) return *x - *y;
    return 0;
}
#endif
#endif
