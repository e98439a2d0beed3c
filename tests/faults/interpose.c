/* Preloaded into a program, makes chosen calls on files below a folder fail, or kills the program in them.
 *
 * FAULT_UNDER  the folder
 * FAULT_CALL   open (for writing), write, fsync, fsyncdir, rename, unlink; or "change": any of these
 * FAULT_AT     the first call of that kind to be hit, 1 and up
 * FAULT_TIMES  how many are hit from there on, before the file system is back; 0: all
 * FAULT_ERRNO  what it fails with; 0: the program is killed by SIGKILL, a write half done. A failed fsync has lost the
 *              file's pages: it holds zeros, and the next fsync succeeds. Else nothing was done.
 * FAULT_SLEEP_MS  how long they take instead of failing: then they are done, as by a slow disk
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ORIGINAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_hit(const char *call, const char *path)
{
    static atomic_int calls;
    const char *wanted = getenv("FAULT_CALL"), *under = getenv("FAULT_UNDER");
    if (!wanted || !under || strncmp(path, under, strlen(under)) != 0)
        return 0;
    if (strcmp(wanted, call) != 0 && strcmp(wanted, "change") != 0)
        return 0;
    int past = atomic_fetch_add(&calls, 1) + 1 - atoi(getenv("FAULT_AT")), times = atoi(getenv("FAULT_TIMES"));
    int hit = past >= 0 && (times == 0 || past < times);
    const char *sleep_ms = getenv("FAULT_SLEEP_MS");
    if (hit && sleep_ms) {
        usleep(1000 * atoi(sleep_ms));
        return 0;
    }
    return hit;
}

static int fail(void)
{
    int number = atoi(getenv("FAULT_ERRNO"));
    if (number == 0)
        kill(getpid(), SIGKILL);
    errno = number;
    return -1;
}

static const char *path_of(int descriptor, char *buffer, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, size - 1);
    buffer[length > 0 ? length : 0] = 0;
    return buffer;
}

static int open_any(const char *path, int flags, mode_t mode)
{
    if ((flags & O_ACCMODE) != O_RDONLY && is_hit("open", path))
        return fail();
    return ORIGINAL(open64)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_any(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_any(path, flags, mode);
}

ssize_t write(int descriptor, const void *bytes, size_t count)
{
    char path[4096];
    if (is_hit("write", path_of(descriptor, path, sizeof path))) {
        if (atoi(getenv("FAULT_ERRNO")) == 0)
            ORIGINAL(write)(descriptor, bytes, count / 2);
        return fail();
    }
    return ORIGINAL(write)(descriptor, bytes, count);
}

int fsync(int descriptor)
{
    char path[4096];
    struct stat about;
    const char *call = fstat(descriptor, &about) == 0 && S_ISDIR(about.st_mode) ? "fsyncdir" : "fsync";
    if (!is_hit(call, path_of(descriptor, path, sizeof path)))
        return ORIGINAL(fsync)(descriptor);
    if (S_ISREG(about.st_mode) && atoi(getenv("FAULT_ERRNO")) && ftruncate(descriptor, 0) == 0)
        if (ftruncate(descriptor, about.st_size) != 0)
            abort();
    return fail();
}

int rename(const char *from, const char *to)
{
    return is_hit("rename", to) ? fail() : ORIGINAL(rename)(from, to);
}

int unlink(const char *path)
{
    return is_hit("unlink", path) ? fail() : ORIGINAL(unlink)(path);
}
