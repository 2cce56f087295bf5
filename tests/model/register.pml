/* Registration: a reliable reader that joins while the writer runs is never lapped from its first sequence on.

   1. After sync REGISTER no claim goes beyond cursor + SLOTS, so that validate always succeeds.
   2. The reader misses nothing that is published after it has registered.

   The writer looks at `attention` before each claim (a plain load), and scans the reader table only when it is set or
   when its last known limit is reached. One claim may already be past that look when the reader registers; it cannot
   be called back, and may overwrite all that is published. So the reader begins at published, loaded again after its
   barrier (membarrier: it reaches the writer's processor too), and the claim under way ends at most SLOTS after that.
   Who wants an older start reads as a lossy reader up to there.

   Two readers may register at once. Settings: SLOTS, RECORDS, BATCH, ABORTS.
   Each other macro breaks one thing, and the verifier must find it:
     NO_REREAD            the reader begins at published as it was before it registered
     FROM_OLDEST          the reader moves only to the oldest row that no claim has covered yet: claimed - SLOTS
     FROM_CLAIMED         the reader begins at claimed, and so skips rows still to be published
     LOCAL_BARRIER        the reader's barrier does not reach the writer's processor
     ATTENTION_FIRST      attention is raised before the entry is in the table
     LOOK_EARLY           the writer's look overtakes its store of published (no compiler barrier)
     NO_SCAN              the writer never looks at attention
     CLEAR_AFTER_SCAN     the writer scans, then clears attention
     PLAIN_CLEAR          attention is cleared by a plain store, not by an exchange */

#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef RECORDS
#define RECORDS 5
#endif
#ifndef BATCH
#define BATCH SLOTS
#endif

#ifndef ABORTS
#define ABORTS 1
#endif

#define CLAIMED   0
#define PUBLISHED 1
#define ATTENTION 2
#define LOCATIONS 3
#define BUFFER    5
#define UNLIMITED 255
#include "store_buffer.pml"

bool registered[2];                                        /* the reader table */
byte consumed[2];
byte committed;                                            /* the last sequence that the writer published */
bool finished;

inline consider(reader) {
  d_step {
    if
    :: registered[reader] && consumed[reader] + SLOTS < limit -> limit = consumed[reader] + SLOTS
    :: else
    fi
  }
}

inline scan() {
  limit = UNLIMITED;
  consider(0);
  consider(1)
}

inline clear_attention() {
  if
#ifdef PLAIN_CLEAR
  :: attention -> store(ATTENTION, 0)
#else
  :: attention -> memory[ATTENTION] = 0                    /* an exchange acts on memory itself, past the buffer */
#endif
  :: else
  fi
}

inline look() {
#ifndef NO_SCAN
  attention = memory[ATTENTION]                            /* sync REGISTER: after published of the last commit */
#else
  skip
#endif
}

active proctype Writer() {
  byte claimed, count;
  byte limit = UNLIMITED;
  byte aborts_left = ABORTS;
  bool attention;
  do
  :: committed < RECORDS ->
     atomic {
       count = 1;
       do
       :: count < BATCH && committed + count < RECORDS -> count++
       :: break
       od
     }
     do
     ::
#ifndef LOOK_EARLY
        look();
#endif
        if
        :: attention || committed + count > limit ->
#ifdef CLEAR_AFTER_SCAN
           scan();
           clear_attention();
#else
           clear_attention();                              /* before the scan: who raises it later is seen later */
           scan();
#endif
           attention = false
        :: else
        fi;
        if
        :: committed + count <= limit -> break
        :: else
#ifdef LOOK_EARLY
           -> look()
#endif
        fi
     od;
     if
     :: committed + count > claimed -> claimed = committed + count; store(CLAIMED, claimed)
     :: else
     fi;
     fence_release();                                      /* sync CLAIM; the rows themselves are in ring.pml */
     if
     :: aborts_left > 0 -> aborts_left--
     ::
#ifdef LOOK_EARLY
        look();
#endif
        d_step { in_flight < BUFFER -> committed = committed + count }
        store_release(PUBLISHED, committed)                /* sync PUBLISH */
     fi
  :: else -> break
  od;
  finished = true
}

active [2] proctype Reader() {
  byte cursor, last;
  byte me = _pid & 1;
  cursor = memory[PUBLISHED];
#ifdef ATTENTION_FIRST
  memory[ATTENTION] = 1;
#endif
  d_step { consumed[me] = cursor; registered[me] = true }
#ifndef ATTENTION_FIRST
  memory[ATTENTION] = 1;                                   /* release: the entry first */
#endif
#ifndef LOCAL_BARRIER
  barrier_writer();                                        /* sync REGISTER: membarrier */
#endif
#if defined(NO_REREAD)
  skip;
#elif defined(FROM_OLDEST)
  if
  :: memory[CLAIMED] > cursor + SLOTS -> cursor = memory[CLAIMED] - SLOTS
  :: else
  fi;
#elif defined(FROM_CLAIMED)
  cursor = memory[CLAIMED];
#else
  cursor = memory[PUBLISHED];                              /* sync REGISTER */
#endif
  assert(cursor <= committed);
  consumed[me] = cursor;
  do
  :: memory[PUBLISHED] > cursor ->
     last = memory[PUBLISHED];
     assert(memory[CLAIMED] <= cursor + SLOTS);            /* sync LAP: validate */
     d_step { cursor = last; last = 0; consumed[me] = cursor }
  :: finished && in_flight == 0 && memory[PUBLISHED] <= cursor -> break
  :: true -> break                                         /* leaves, or is let go of */
  od;
  registered[me] = false
}
