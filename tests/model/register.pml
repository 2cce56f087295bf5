/* Registration: a reader that becomes reliable while the writer runs is never lapped from then on.

   1. Once RingCursor.hold_writer has said yes, no claim goes beyond cursor + SLOTS: validate always succeeds.
   2. The writer never waits for a reader that is gone.

   The writer looks at `attention` before each claim (a plain load), and looks through the reader table only when it is
   set; otherwise it goes by the list it has. One claim may already be past that look when the reader announces itself.
   It cannot be called back, and ends at most HALF + AHEAD behind what was published at the look. So the reader loads
   `published` again after its barrier (membarrier: it reaches the writer's processor too), and counts itself reliable
   only within a QUARTER of the ring of it: QUARTER + HALF + AHEAD <= SLOTS. `claimed` must not have passed it either:
   a new writer's ring may say more than was ever published. Otherwise it is lossy again, reads on, and tries later.

   Settings: READERS (1 or 2), SLOTS, RECORDS, AHEAD, ABORTS, and RESTARTED: the ring is a new writer's, and what was
   published before was not carried over.
   Each other macro breaks one thing, and the verifier must find it:
     NO_REREAD            the reader compares with published as it was before it announced itself
     NO_QUARTER           the reader holds wherever claimed has not passed it yet
     WITHIN_HALF          the reader holds within half a ring
     NO_INTACT            the reader does not look at claimed
     CLAIM_MORE           one claim takes more than half the ring
     AHEAD_OF_LIMIT       the writer claims ahead also beyond what it may publish
     LOCAL_BARRIER        the reader's barrier does not reach the writer's processor
     ATTENTION_FIRST      attention is raised before the entry is in the table
     LEAVE_SILENTLY       a reader leaves without raising attention
     LOOK_EARLY           the writer's look overtakes its store of published (no compiler barrier)
     NO_SCAN              the writer never looks at attention
     CLEAR_AFTER_SCAN     the writer scans, then clears attention
     PLAIN_CLEAR          attention is cleared by a plain store, not by an exchange */

#ifndef SLOTS
#define SLOTS 4
#endif
#ifndef RECORDS
#define RECORDS 5
#endif
#ifndef READERS
#define READERS 1
#endif
#ifndef AHEAD
#define AHEAD (SLOTS / 4)                                  /* slot_count / 64 in the code */
#endif
#ifndef ABORTS
#define ABORTS 1
#endif

#ifdef WITHIN_HALF
#define QUARTER (SLOTS / 2)
#else
#define QUARTER (SLOTS / 4)
#endif
#ifdef CLAIM_MORE
#define HALF (SLOTS / 2 + 1)
#else
#define HALF (SLOTS / 2)                                   /* RingPublisher.begin; a batch takes a quarter at a time */
#endif

#define CLAIMED   0
#define PUBLISHED 1
#define ATTENTION 2
#define LOCATIONS 3
#define BUFFER    5
#define UNLIMITED 255
#include "store_buffer.pml"

bool reliable[2];                                          /* the reader table: policy, and how far each has come */
byte consumed[2];
bool listed[2];                                            /* the writer's list of those that hold it back */
bool finished;

inline consider(reader) {
  if
  :: listed[reader] && consumed[reader] + SLOTS < limit -> limit = consumed[reader] + SLOTS
  :: else
  fi
}

inline update_limit() {
  d_step { limit = UNLIMITED; consider(0); consider(1) }
}

inline scan() {
  listed[0] = reliable[0];
  listed[1] = reliable[1];
  update_limit()
}

inline clear_attention() {
#ifdef PLAIN_CLEAR
  store(ATTENTION, 0)
#else
  memory[ATTENTION] = 0                                    /* an exchange acts on memory itself, past the buffer */
#endif
}

inline rescan() {
#ifdef CLEAR_AFTER_SCAN
  scan();
  clear_attention();
#else
  clear_attention();                                       /* before the scan: who raises it later is seen later */
  scan();
#endif
  attention = false
}

inline look() {
#ifndef NO_SCAN
  attention = memory[ATTENTION]                            /* sync REGISTER: after published of the last commit */
#else
  skip
#endif
}

inline make_room() {
#ifndef LOOK_EARLY
  look();                                                  /* RingWriter.may_publish */
#endif
  if
  :: !attention && committed + count <= limit
  :: else ->                                               /* RingPublisher._make_room: as soon as there is room, no more looks */
     do
     :: look();
        if
        :: attention -> rescan()
        :: else -> update_limit()
        fi;
        if
        :: committed + count <= limit -> break
        :: else ->                                         /* wait until another turn may help */
           memory[ATTENTION] ||
           ((!listed[0] || committed + count <= consumed[0] + SLOTS) &&
            (!listed[1] || committed + count <= consumed[1] + SLOTS))
        fi
     od;
     attention = false
  fi
}

active proctype Writer() {
  byte committed, claimed, count;
  byte limit = UNLIMITED;
  byte aborts_left = ABORTS;
  bool attention;
#ifdef RESTARTED
  d_step { committed = 1; claimed = 1 + SLOTS; memory[PUBLISHED] = committed; memory[CLAIMED] = claimed }
#endif
  do
  :: committed < RECORDS ->
     atomic {
       count = 1;
       do
       :: count < HALF && committed + count < RECORDS -> count++
       :: break
       od
     }
     make_room();
     if
     :: committed + count > claimed ->
        d_step {
          claimed = committed + count;
          if
#ifdef AHEAD_OF_LIMIT
          :: true -> claimed = claimed + AHEAD
#else
          :: claimed + AHEAD <= limit -> claimed = claimed + AHEAD
          :: else
#endif
          fi
        }
        store(CLAIMED, claimed)
     :: else
     fi;
     fence_release();                                      /* sync CLAIM; the rows themselves are in ring.pml */
     if
     :: aborts_left > 0 -> aborts_left--
     ::
#ifdef LOOK_EARLY
        look();
#endif
        committed = committed + count;
        store_release(PUBLISHED, committed)                /* sync PUBLISH */
     fi
  :: else -> break
  od;
  finished = true
}

inline announce() {
#ifndef ATTENTION_FIRST
  memory[ATTENTION] = 1;                                   /* release: the entry first */
#endif
#ifndef LOCAL_BARRIER
  barrier_writer()                                         /* sync REGISTER: membarrier */
#else
  skip
#endif
}

active [READERS] proctype Reader() {
  byte cursor, published, claimed;
  byte me = _pid & 1;
#ifdef RESTARTED
  memory[CLAIMED] > 0;                                     /* ready: the writer has set the watermarks */
#endif
  do
  :: if
     :: cursor = memory[PUBLISHED]                         /* a lossy reader reads on, as far as it likes */
     :: true
     fi;
#ifdef NO_REREAD
     published = memory[PUBLISHED];
#endif
#ifdef ATTENTION_FIRST
     memory[ATTENTION] = 1;
#endif
     d_step { consumed[me] = cursor; reliable[me] = true }
     announce();
#ifndef NO_REREAD
     published = memory[PUBLISHED];                        /* sync REGISTER */
#endif
     claimed = memory[CLAIMED];                            /* intact(cursor + 1) */
     d_step {
#ifdef NO_QUARTER
       published = 0;
#endif
#ifdef NO_INTACT
       claimed = 0;
#endif
       skip
     }
     if
     :: cursor + QUARTER >= published && claimed <= cursor + SLOTS -> published = 0; claimed = 0; break
     :: else -> published = 0; claimed = 0
     fi;
#ifdef REACH_REFUSED
     assert(false);
#endif
     reliable[me] = false;
     announce()
  od;
#ifdef REACH_HELD
  assert(cursor < 2);
#endif
  do
  :: memory[PUBLISHED] > cursor ->
     published = memory[PUBLISHED];
     assert(memory[CLAIMED] <= cursor + SLOTS);            /* sync LAP: validate */
     d_step { cursor = published; published = 0; consumed[me] = cursor }
  :: finished && in_flight == 0 && memory[PUBLISHED] <= cursor -> break
  :: true -> break                                         /* leaves, or is let go of */
  od;
  reliable[me] = false;
#ifndef LEAVE_SILENTLY
  announce()
#endif
}
