/* The writer's stores on their way to memory, in any order that its fences allow.

   Including file first defines LOCATIONS and BUFFER (most stores in flight; fences count too).

   1. Readers see `memory` only. The writer never reads back what it stored; it knows it.
   2. Two stores to one location arrive in program order (coherence).
   3. A store behind a release fence arrives after every store before that fence.
   4. A release store arrives after every store before it. Later stores may still overtake it.
   5. When the writer has been killed, stores may stop arriving at any point.

   -DFIFO lets stores arrive in program order only, as on x86. */

#define PLAIN   0
#define RELEASE 1
#define FENCE   2

byte memory[LOCATIONS];
byte store_kind[BUFFER], store_where[BUFFER], store_what[BUFFER];
byte in_flight;
bool killed;

inline send(kind, where, what) {
  d_step {
    in_flight < BUFFER ->
    store_kind[in_flight] = kind; store_where[in_flight] = where; store_what[in_flight] = what;
    in_flight++
  }
}

inline store(where, what)         { send(PLAIN, where, what) }
inline store_release(where, what) { send(RELEASE, where, what) }
inline fence_release()            { send(FENCE, 0, 0) }

/* Full barrier by the writer, or membarrier(2) by a reader: what the writer has stored so far is in memory. */
inline barrier_writer() { in_flight == 0 }

active proctype Memory() {
  byte pick, i;
  bool free;
end:
  do
  :: atomic {
       in_flight > 0 ->
       pick = 0;
#ifndef FIFO
       do
       :: pick + 1 < in_flight -> pick++
       :: break
       od;
#endif
       d_step {
         free = true;
         i = 0;
         do
         :: i < pick ->
            if
            :: store_kind[i] == FENCE || store_kind[pick] != PLAIN || store_where[i] == store_where[pick] ->
               free = false
            :: else
            fi;
            i++
         :: else -> break
         od;
         if
         :: free ->
            if
            :: store_kind[pick] != FENCE -> memory[store_where[pick]] = store_what[pick]
            :: else
            fi;
            i = pick;
            do
            :: i + 1 < in_flight ->
               store_kind[i] = store_kind[i + 1];
               store_where[i] = store_where[i + 1];
               store_what[i] = store_what[i + 1];
               i++
            :: else -> break
            od;
            in_flight--;
            store_kind[in_flight] = 0; store_where[in_flight] = 0; store_what[in_flight] = 0
         :: else
         fi;
         pick = 0; i = 0; free = false      /* no leftovers: fewer states */
       }
     }
  :: d_step { killed && in_flight > 0 ->
       i = 0;
       do
       :: i < in_flight -> store_kind[i] = 0; store_where[i] = 0; store_what[i] = 0; i++
       :: else -> break
       od;
       in_flight = 0; i = 0
     }
  od
}
