/* Memory in large pages. For what is larger than FRESH malloc has new pages of the system at every call, each of which
 * takes time when it is first touched: 52 MB of states 35 ms on a virtual machine with a Xeon, in large pages 5 ms. */
#include "memory.h"
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { LARGE_PAGE = 1 << 21, FRESH = 1 << 25 }; /* bytes; FRESH is the most of glibc's M_MMAP_THRESHOLD */

void *allocate(long bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes))
        return NULL;
    use_large_pages(memory, bytes);
    return memory;
}

void use_large_pages(void *memory, long bytes)
{
#ifdef MADV_HUGEPAGE
    const uintptr_t begin = ((uintptr_t)memory + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    const uintptr_t end = ((uintptr_t)memory + bytes) / LARGE_PAGE * LARGE_PAGE;
    if (bytes >= FRESH)
        madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* a system that has none goes on with its own */
#else
    (void)memory, (void)bytes;
#endif
}
