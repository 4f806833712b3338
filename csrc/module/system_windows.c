/* system_windows.c: the operating system, if it is Windows. */
#ifdef _WIN32
#include "system.h"

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <psapi.h>

static SRWLOCK mutex = SRWLOCK_INIT;

void rf_lock(void) {
    AcquireSRWLockExclusive(&mutex);
}

void rf_unlock(void) {
    ReleaseSRWLockExclusive(&mutex);
}

int rf_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void)) {
    (void)before, (void)in_parent, (void)in_child; // there is no fork
    return 0;
}

int64_t rf_milliseconds(void) {
    return (int64_t)GetTickCount64();
}

int rf_addresses_are_limited(void) {
    return 0; // a job's limit is one of memory
}

char *rf_reserve(size_t bytes, size_t align) {
    char *at = VirtualAlloc(NULL, bytes + align, MEM_RESERVE, PAGE_NOACCESS);
    return at ? (char *)(((uintptr_t)at + align - 1) / align * align) : NULL;
}

int rf_reserve_above(char *end, size_t bytes) {
    (void)end, (void)bytes; // two reservations are never one
    return 0;
}

size_t rf_unreserve(char *base, size_t kept, size_t reserved) {
    MEMORY_BASIC_INFORMATION found;
    if (kept) {
        if (reserved > kept) rf_decommit(base + kept, reserved - kept);
        return reserved;
    }
    if (VirtualQuery(base, &found, sizeof found)) VirtualFree(found.AllocationBase, 0, MEM_RELEASE);
    return 0;
}

int rf_commit(char *at, size_t bytes) {
    return VirtualAlloc(at, bytes, MEM_COMMIT, PAGE_READWRITE) != NULL;
}

void rf_decommit(char *at, size_t bytes) {
    VirtualFree(at, bytes, MEM_DECOMMIT);
}

int rf_recommit(char *at, size_t bytes) {
    return rf_commit(at, bytes); // pages that have memory keep it
}

void rf_advise_large_pages(void *at, size_t bytes, size_t page) {
    (void)at, (void)bytes, (void)page; // they need a privilege
}

int rf_system_memory(uint64_t *total, uint64_t *available, uint64_t *peak) {
    MEMORYSTATUSEX machine = {.dwLength = sizeof machine};
    PROCESS_MEMORY_COUNTERS process = {.cb = sizeof process};
    if (!GlobalMemoryStatusEx(&machine) ||
        !GetProcessMemoryInfo(GetCurrentProcess(), &process, sizeof process))
        return 0;
    const uint64_t unpaged = machine.ullAvailPhys, commit = machine.ullAvailPageFile;
    *total = machine.ullTotalPhys;
    *available = unpaged < commit ? unpaged : commit;
    *peak = process.PeakWorkingSetSize;
    return 1;
}
#endif
