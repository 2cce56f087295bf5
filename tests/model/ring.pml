/* Claim, publish, lap and validate: one writer, one lossy reader, one reliable reader, a small ring.

   1. A row that a reader accepted is whole and is the row of its sequence: both words.
   2. A reliable reader is never lapped.
   3. A lapped reader misses at least one record and skips none that is still to be published. It counts what it skips.
   4. A lossy reader neither waits for the writer nor holds it back; nobody hangs when the writer is killed.
   5. claimed never falls, also after an abort.

   Readers share nothing with each other and a lossy one stores nothing, so one of each kind stands for many.
   Sequences start at 1 and live in slot `sequence & (SLOTS - 1)`. The value of a row's two words is its sequence.

   Settings: SLOTS, RECORDS, BATCH (most rows of a publish or a read), ABORTS, and NO_LOSSY or NO_RELIABLE to leave
   a reader out. Each other macro breaks one thing, and the verifier must find it:
     PUBLISH_FIRST        published is stored before the rows
     CLAIM_LATE           claimed is stored after the rows
     ABORT_REWINDS        an abort takes claimed back
     NO_LIMIT             the writer does not wait for the reliable reader
     VALIDATE_EARLY       the reader loads claimed before the rows
     VALIDATE_OFF_BY_ONE  validate accepts one row too many
     CONSUME_EARLY        the reliable reader passes its rows before it has read them
     NO_CLAIM_FENCE  NO_PUBLISH_RELEASE  NO_PUBLISH_ACQUIRE  NO_LAP_FENCE      a memory order is missing
     REACH_LAPPED         nothing is broken: shows that the lossy reader does get lapped */

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
#define WORD(n)   (2 + (n))                                /* word 2 * slot and word 2 * slot + 1 make the row */
#define SLOT(s)   ((s) & (SLOTS - 1))
#define JUNK      99                                       /* what a claim that is going to abort writes */
#define LOCATIONS (2 + 2 * SLOTS)
#ifndef BUFFER
#define BUFFER    5
#endif
#define UNKNOWN   255                                      /* claimed, not loaded yet */
#ifdef VALIDATE_OFF_BY_ONE
#define INTACT(first, claimed) ((claimed) <= (first) + SLOTS)
#else
#define INTACT(first, claimed) ((claimed) < (first) + SLOTS)   /* claimed - slots <= first - 1, never below 0 */
#endif
#include "store_buffer.pml"

byte consumed;                                             /* the reliable reader's cursor, in the reader table */
byte committed;                                            /* the last sequence that the writer published */
bool finished;                                             /* the writer stores nothing more */

inline announce() {
  if
  :: committed + count > claimed ->
     claimed = committed + count;
     store(CLAIMED, claimed)
  :: else                                                  /* an aborted claim went further: it stands */
  fi;
#ifndef NO_CLAIM_FENCE
  fence_release()              /* sync CLAIM: nothing of the new rows may be seen before the claim on their slots */
#endif
}

inline write_rows() {
  sequence = committed + 1;
  do
  :: sequence <= committed + count ->
     store(WORD(2 * SLOT(sequence)), (abort -> JUNK : sequence));
     store(WORD(2 * SLOT(sequence) + 1), (abort -> JUNK : sequence));
     sequence++
  :: else -> break
  od
}

inline commit() {
#ifdef NO_PUBLISH_RELEASE
  store(PUBLISHED, committed + count)
#else
  store_release(PUBLISHED, committed + count)              /* sync PUBLISH: the rows first */
#endif
}

active proctype Writer() {
  byte claimed, count, sequence;
  byte aborts_left = ABORTS;
  bool abort;
  {
    do
    :: committed < RECORDS ->
       atomic {
         count = 1;
         do
         :: count < BATCH && committed + count < RECORDS -> count++
         :: break
         od;
         if
         :: aborts_left > 0 -> abort = true; aborts_left--
         :: abort = false
         fi
       }
#if !defined(NO_RELIABLE) && !defined(NO_LIMIT)
       committed + count <= consumed + SLOTS;              /* sync CONSUME: acquire; the slots are read */
#endif
#ifdef PUBLISH_FIRST
       announce(); commit(); write_rows();
#elif defined(CLAIM_LATE)
       write_rows(); announce();
#else
       announce(); write_rows();
#endif
       if
       :: abort ->
          skip
#ifdef ABORT_REWINDS
          ; claimed = committed; store(CLAIMED, claimed)
#endif
       :: else ->
#ifndef PUBLISH_FIRST
          commit();
#endif
          committed = committed + count
       fi
    :: else -> break
    od
  } unless { killed };
  finished = true
}

active proctype Killer() {
  if
  :: killed = true
  :: finished
  fi
}

/* Load the rows first .. last, word by word, in any order: between two fences loads are free to move.
   `unread` has a bit for each word. claimed joins in where no fence keeps it behind the rows. */
inline load_rows() {
  d_step {
    sequence = first;
    do
    :: sequence <= last -> unread = unread | (3 << (2 * SLOT(sequence))); sequence++
    :: else -> break
    od;
    sequence = 0
  }
  do
  :: unread != 0 ->
     atomic {
       word = 0;
       do
       :: (unread >> word) & 1 -> break
       :: (unread >> (word + 1)) != 0 -> word++
       od;
       d_step {
         unread = unread & ~(1 << word);
         wrong = wrong || memory[WORD(word)] != first + SLOT((word >> 1) - first);
         word = 0
       }
     }
#ifdef NO_LAP_FENCE
  :: unread != 0 && lap == UNKNOWN -> lap = memory[CLAIMED]
#endif
  :: else -> break
  od
}

inline read_batches(is_reliable) {
  do
#ifdef NO_PUBLISH_ACQUIRE
  :: !finished ->
     first = cursor + 1; last = first;
     load_rows();
     memory[PUBLISHED] > cursor;
#else
  :: memory[PUBLISHED] > cursor ->                         /* sync PUBLISH: acquire; the rows are there */
     atomic {
       first = cursor + 1; last = first;
       do
       :: last < memory[PUBLISHED] && last - cursor < BATCH -> last++
       :: break
       od
     }
#ifdef VALIDATE_EARLY
     lap = memory[CLAIMED];
#endif
#ifdef CONSUME_EARLY
     if
     :: is_reliable -> consumed = last
     :: else
     fi;
#endif
     load_rows();
#endif
     /* sync LAP: acquire fence; if a load above met a new row, the load below meets its claim (sync CLAIM) */
     if
     :: lap == UNKNOWN -> lap = memory[CLAIMED]
     :: else
     fi;
     d_step {
       if
       :: INTACT(first, lap) ->
          assert(!wrong);
          cursor = last
       :: else ->
          assert(!is_reliable);
#ifdef REACH_LAPPED
          assert(false);
#endif
          assert(cursor < lap - SLOTS && lap - SLOTS <= committed);
          cursor = lap - SLOTS
       fi;
       wrong = false; lap = UNKNOWN; first = 0; last = 0
     }
     if
     :: is_reliable -> consumed = cursor                   /* sync CONSUME: release; the loads of the rows first */
     :: else
     fi
  :: finished && in_flight == 0 && memory[PUBLISHED] <= cursor -> break
  od;
  assert(killed || cursor == RECORDS)
}

#ifndef NO_LOSSY
active proctype Lossy() {
  byte cursor, first, last, sequence, word, unread;
  byte lap = UNKNOWN;
  bool wrong;
  read_batches(false)
}
#endif

#ifndef NO_RELIABLE
active proctype Reliable() {
  byte cursor, first, last, sequence, word, unread;
  byte lap = UNKNOWN;
  bool wrong;
  read_batches(true)
}
#endif
