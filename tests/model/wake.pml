/* Sleep and wake: a reader about to sleep and a writer that has just published never miss each other.

   1. No lost wake-up: nobody sleeps for ever while published > cursor. A sleeper that nobody wakes is an invalid end
      state; a reader may leave only when nothing is due to it any more.

   The writer must not pay for a full barrier at each publish. So the reader, about to sleep, makes one on both sides
   (membarrier): after it, either the reader sees what was published or the writer sees need_wake. In the writer a
   compiler barrier between the two suffices. -DWRITER_BARRIER is the other sound way: a full barrier in the writer
   at each publish, and a plain one in the reader.

   Readers share need_wake and the doorbell, so there are two of them. Settings: RECORDS, WRITER_BARRIER, and KILL: the
   writer may be killed at any step, also between published and the bell. Then only a timeout on the sleep helps.
   Each other macro breaks one thing, and the verifier must find it:
     NO_RECHECK           the reader sleeps without looking at published again
     DOORBELL_LATE        the reader reads the doorbell after it looked at published
     LOCAL_BARRIER        the reader's barrier reaches only the reader, and the writer has none
     NO_READER_BARRIER    the reader's load of published overtakes its store of need_wake
     LOOK_FIRST           the writer's load of need_wake overtakes its store of published (no compiler barrier)
     CLEAR_LATE           the writer rings, then clears need_wake
     BELL_RELAXED         the bell may be seen before the clearing of need_wake
     NO_BELL              the writer wakes without changing the doorbell
     KILL + NO_TIMEOUT    a sleep without end beside a writer that was killed */

#ifndef RECORDS
#define RECORDS 3
#endif

#define PUBLISHED 0
#define NEED_WAKE 1
#define LOCATIONS 2
#define BUFFER    4
#include "store_buffer.pml"

byte doorbell;
bool asleep[2];
bool finished;

/* The doorbell is counted up by an atomic read-modify-write: that acts on memory itself, past the writer's buffer. */
inline ring() {
#ifndef NO_BELL
#ifndef BELL_RELAXED
  barrier_writer();                                        /* release: need_wake = 0 first */
#endif
  doorbell++;
#endif
  barrier_writer();                                        /* FUTEX_WAKE begins with a full barrier */
  d_step { asleep[0] = false; asleep[1] = false }
}

inline wake() {
#ifdef CLEAR_LATE
  ring();
  store(NEED_WAKE, 0)
#else
  store(NEED_WAKE, 0);     /* before the bell: who raises it after this is seen by the next publish */
  ring()
#endif
}

active proctype Writer() {
  byte sequence;
  bool sleepers;
  {
    do
    :: sequence < RECORDS ->
       sequence++;
#ifdef LOOK_FIRST
       sleepers = memory[NEED_WAKE];
       store_release(PUBLISHED, sequence);
#else
       store_release(PUBLISHED, sequence);
#ifdef WRITER_BARRIER
       barrier_writer();                                   /* sync WAKE: published first, then need_wake */
#endif
       sleepers = memory[NEED_WAKE];                       /* sync WAKE */
#endif
       if
       :: sleepers -> wake()
       :: else
       fi
    :: else -> break
    od
  } unless { killed };
  finished = true
}

#ifdef KILL
active proctype Killer() {
  if
  :: killed = true
  :: finished
  fi
}
#endif

#define NOTHING_DUE (finished && in_flight == 0 && memory[PUBLISHED] <= cursor)

active [2] proctype Reader() {
  byte cursor, bell, due;
  byte me = _pid & 1;
  do
  :: memory[PUBLISHED] > cursor -> cursor = memory[PUBLISHED]
  :: NOTHING_DUE -> break
  :: memory[PUBLISHED] <= cursor ->
     bell = doorbell;                                      /* before need_wake */
#ifdef NO_READER_BARRIER
     due = memory[PUBLISHED] > cursor;
     memory[NEED_WAKE] = 1;
#else
     memory[NEED_WAKE] = 1;
#if !defined(LOCAL_BARRIER) && !defined(WRITER_BARRIER)
     barrier_writer();                                     /* sync WAKE: membarrier */
#endif
     due = memory[PUBLISHED] > cursor;                     /* sync WAKE */
#endif
#ifdef NO_RECHECK
     due = false;
#endif
#ifdef DOORBELL_LATE
     bell = doorbell;
#endif
     if
     :: due
     :: else ->
        atomic {                                           /* FUTEX_WAIT compares and sleeps in one step */
          if
          :: doorbell == bell -> asleep[me] = true
          :: else
          fi
        }
        if
        :: !asleep[me]
        :: NOTHING_DUE -> break
#ifndef NO_TIMEOUT
        :: killed -> asleep[me] = false                    /* the sleep timed out; the reader looks again */
#endif
        fi
     fi;
     d_step { bell = 0; due = 0 }
  od
}
