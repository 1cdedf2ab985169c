/* What guards a pool, and all that has its frames, where there is no GIL to do so.
 *
 * HOLD(object) at the top of a function holds that object's lock (PyCriticalSection, Python 3.13) until the function
 * returns, however it does. Like the GIL it is let go while a thread is detached, sleeps or waits for another lock, so
 * that it cannot deadlock, and what is right at those points with the GIL is right without. It is the first statement of
 * a function, before anything that can fail. With the GIL it is nothing.
 */
#ifndef FAST_SOCKET_SECTION_H
#define FAST_SOCKET_SECTION_H

#include <Python.h>

#ifdef Py_GIL_DISABLED
#define FAST_SOCKET_NO_GIL 1
static inline void fast_socket_let_go(PyCriticalSection *section)
{
    PyCriticalSection_End(section);
}
#define FAST_SOCKET_HOLD(object)                                                                                       \
    __attribute__((cleanup(fast_socket_let_go))) PyCriticalSection fast_socket_section;                                \
    PyCriticalSection_Begin(&fast_socket_section, (PyObject *)(object))
#else
#define FAST_SOCKET_NO_GIL 0
#define FAST_SOCKET_HOLD(object) ((void)(object))
#endif

#endif
