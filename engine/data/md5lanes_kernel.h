/* MD5 (RFC 1321) of LANES streams at once, as a template: md5lanes.c includes this file once for
 * every width, with LANES (1, 4, 8 or 16), NAME(x) and TARGET (the instruction set) defined.
 *
 * Each 32-bit word of the algorithm is a vector here, with one lane for each stream. MD5 is one
 * long chain of operations that wait for one another, so a step takes as long for many lanes as
 * for one.
 */

#if LANES == 1
typedef uint32_t NAME(vector);
#else
typedef uint32_t NAME(vector) __attribute__((vector_size(4 * LANES)));
#endif
#define V NAME(vector)

/* The functions of RFC 1321, 3.4; its F and G need one operation less when written like this.
 * The two halves of G have no bit in common, so they may be added: one lane then need not wait for
 * B, the word that comes last, with the first half. */
#define F(x, y, z) ((((y) ^ (z)) & (x)) ^ (z))
#if LANES == 1
#define G(x, y, z) ((~(z) & (y)) + ((z) & (x)))
#else
#define G(x, y, z) ((((x) ^ (y)) & (z)) ^ (y))
#endif
#define H(x, y, z) ((x) ^ (y) ^ (z))
#define I(x, y, z) ((y) ^ ((x) | ~(z)))

#define STEP(f, a, b, c, d, k, s, t)        \
    do {                                    \
        a += word[k] + t + f(b, c, d);      \
        a = (a << s | a >> (32 - s)) + b;   \
    } while (0)

/* Four steps, of the words and with the constants given, rotating by s0 to s3 bits. */
#define ROW(f, s0, s1, s2, s3, k0, k1, k2, k3, t0, t1, t2, t3) \
    STEP(f, a, b, c, d, k0, s0, t0);                           \
    STEP(f, d, a, b, c, k1, s1, t1);                           \
    STEP(f, c, d, a, b, k2, s2, t2);                           \
    STEP(f, b, c, d, a, k3, s3, t3)
#define ROW_F(...) ROW(F, 7, 12, 17, 22, __VA_ARGS__)
#define ROW_G(...) ROW(G, 5, 9, 14, 20, __VA_ARGS__)
#define ROW_H(...) ROW(H, 4, 11, 16, 23, __VA_ARGS__)
#define ROW_I(...) ROW(I, 6, 10, 15, 21, __VA_ARGS__)

#if LANES > 1

/* The elements of two vectors in turn: those of their lower halves, those of their upper halves. */
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif

/* Turn LANES rows of LANES words, one row of each stream, into one vector for each word.
 * Interleaving the rows of one half with those of the other log2(LANES) times transposes them. */
TARGET static inline __attribute__((always_inline)) void NAME(transpose)(V *row)
{
    V next[LANES];
    for (int stage = 1; stage < LANES; stage *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(V, row[i], row[i + LANES / 2], LOWER);
            next[2 * i + 1] = SHUFFLE(V, row[i], row[i + LANES / 2], UPPER);
        }
        for (int i = 0; i < LANES; i++)
            row[i] = next[i];
    }
}

#undef LOWER
#undef UPPER
#endif

/* Hash `blocks` blocks of 64 bytes of each stream: state[i] has word A, B, C or D of all lanes. */
TARGET static void NAME(hash)(uint32_t state[4][LANES], const uint8_t *const *stream, size_t blocks)
{
    const uint8_t *from[LANES];
    V a, b, c, d;
    memcpy(&a, state[0], sizeof a);
    memcpy(&b, state[1], sizeof b);
    memcpy(&c, state[2], sizeof c);
    memcpy(&d, state[3], sizeof d);
    memcpy(from, stream, sizeof from);

    for (size_t at = 0; at < blocks * BLOCK; at += BLOCK) {
        V word[16];
#if LANES == 1
        memcpy(word, from[0] + at, BLOCK);
#else
        for (int part = 0; part < 16; part += LANES) {
            for (int lane = 0; lane < LANES; lane++)
                memcpy(&word[part + lane], from[lane] + at + 4 * part, sizeof(V));
            NAME(transpose)(&word[part]);
        }
#endif
        const V a0 = a, b0 = b, c0 = c, d0 = d;

        ROW_F(0, 1, 2, 3, 0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee);
        ROW_F(4, 5, 6, 7, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501);
        ROW_F(8, 9, 10, 11, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be);
        ROW_F(12, 13, 14, 15, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821);

        ROW_G(1, 6, 11, 0, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa);
        ROW_G(5, 10, 15, 4, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8);
        ROW_G(9, 14, 3, 8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed);
        ROW_G(13, 2, 7, 12, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a);

        ROW_H(5, 8, 11, 14, 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c);
        ROW_H(1, 4, 7, 10, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70);
        ROW_H(13, 0, 3, 6, 0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05);
        ROW_H(9, 12, 15, 2, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665);

        ROW_I(0, 7, 14, 5, 0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039);
        ROW_I(12, 3, 10, 1, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1);
        ROW_I(8, 15, 6, 13, 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1);
        ROW_I(4, 11, 2, 9, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391);

        a += a0;
        b += b0;
        c += c0;
        d += d0;
    }

    memcpy(state[0], &a, sizeof a);
    memcpy(state[1], &b, sizeof b);
    memcpy(state[2], &c, sizeof c);
    memcpy(state[3], &d, sizeof d);
}

#undef V
#undef F
#undef G
#undef H
#undef I
#undef STEP
#undef ROW
#undef ROW_F
#undef ROW_G
#undef ROW_H
#undef ROW_I
#undef LANES
#undef NAME
#undef TARGET
