/* Answers CPUID as this processor would with AVX2 and nothing newer.
 *
 * Loaded before libraries in which every CPUID gave way to UD2, which has as many bytes and raises
 * SIGILL. Vector extensions behind AVX2 are taken out of leaf 7; all else is the processor's.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

static struct sigaction before;

static uint32_t without(uint32_t value, const int *bits, int count) {
    for (int i = 0; i < count; i++) value &= ~(UINT32_C(1) << bits[i]);
    return value;
}
#define WITHOUT(value, ...) \
    without(value, (const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)at[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0x0b) { /* a real one: let it happen again */
        sigaction(SIGILL, &before, NULL);
        return;
    }
    uint32_t leaf = at[REG_RAX], part = at[REG_RCX], a = leaf, b = 0, c = part, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (leaf == 7 && part == 0) {
        b = WITHOUT(b, 16, 17, 21, 26, 27, 28, 30, 31); /* AVX-512 F DQ IFMA PF ER CD BW VL */
        c = WITHOUT(c, 1, 6, 11, 12, 14);               /* AVX-512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
        d = WITHOUT(d, 2, 3, 8, 22, 23, 24, 25);        /* AVX-512 4VNNIW 4FMAPS VP2INTERSECT FP16; AMX */
    }
    if (leaf == 7 && part == 1) {
        a = WITHOUT(a, 4, 5, 21, 23); /* AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA */
        d = WITHOUT(d, 4, 5, 10, 19); /* AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, AVX10 */
    }
    at[REG_RAX] = a, at[REG_RBX] = b, at[REG_RCX] = c, at[REG_RDX] = d;
    at[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction mine;
    memset(&mine, 0, sizeof mine);
    mine.sa_sigaction = answer;
    mine.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &mine, &before);
}
