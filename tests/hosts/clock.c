/* Preloaded: the time of day is wrong by CLOCK_OFF_S seconds, as on a host without NTP. Times of files, which a file server
 * sets, and the monotonic clock stay right; so do waits until a time of day. (libfaketime shifts all of these.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off_s(void) {
    const char *text = getenv("CLOCK_OFF_S");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    *now = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *into) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    if (into) *into = t.tv_sec;
    return t.tv_sec;
}

/* The moment that is meant by a time of day, for the kernel; a moment of the monotonic clock is far smaller. */
static struct timespec meant(const struct timespec *until) {
    struct timespec t = *until;
    if (t.tv_sec > 1000000000) t.tv_sec -= off_s();
    return t;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *) = dlvsym(RTLD_NEXT, __func__, "GLIBC_2.3.2");
    struct timespec t = meant(until);
    return real(cond, mutex, &t);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    int (*real)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, __func__);
    struct timespec t = meant(until);
    return real(semaphore, &t);
}
