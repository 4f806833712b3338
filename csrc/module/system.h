/* system.h: what the extension asks of the operating system. One file for each kind has all of it,
   system_posix.c and system_windows.c, and knows nothing of Python. */
#ifndef RF_SYSTEM_H
#define RF_SYSTEM_H

#include <stddef.h>
#include <stdint.h>

/* The lock of memory.c. */
void rf_lock(void);
void rf_unlock(void);

/* Call these around every fork, from now on, or none where NULL; -1 without memory. */
int rf_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void));

/* A clock that never goes back; cheap to read, and exact to some milliseconds. */
int64_t rf_milliseconds(void);

/* Addresses without memory. A limit of the process on them: then none are to be reserved. */
int rf_addresses_are_limited(void);
char *rf_reserve(size_t bytes, size_t align); // NULL if there are not as many
int rf_reserve_above(char *end,
                     size_t bytes); // those from the end of reserved ones on; 0 if in use

/* Return the reserved addresses at `base` from the first `kept` bytes on, with their memory.
   Returns how many stay reserved: more than `kept` where addresses are returned only all together.
 */
size_t rf_unreserve(char *base, size_t kept, size_t reserved);

/* Memory at reserved addresses: zeros when first used, 0 if there is not enough. Returning it keeps
   the addresses; before they are used again, the memory is restored. */
int rf_commit(char *at, size_t bytes);
void rf_decommit(char *at, size_t bytes);
int rf_recommit(char *at, size_t bytes);

/* Ask for large pages: for memory that is used right away, page faults of 4 KiB can cost more than
   the work. */
void rf_advise_large_pages(void *at, size_t bytes, size_t page);

/* Bytes of memory of the machine, of it available to this process, and the most that this process
   had resident; 0 where Python finds them by itself. */
int rf_system_memory(uint64_t *total, uint64_t *available, uint64_t *peak);

#endif
