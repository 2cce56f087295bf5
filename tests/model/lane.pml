/* Draining a lane: whoever drains may be killed or taken over at any step, and the next one goes on where it was.

   1. In the topic each of the lane's rows is there exactly once, and in the lane's order.

   A lane with ROWS rows, all published. The first writer drains it into its ring, turn by turn; its stores reach memory in any order
   that they may. Between two turns it may drain a row of another lane, so that lane and topic count differently. The second
   writer fences the first one's ring, settles where it ends, reads the position, and goes on, in a ring of its own, until it
   is killed. The first one may be dead, or awake, and then still finishes what it had begun. The third writer takes the rest.

   Settings: ROWS, BATCH (most rows of a turn), OTHERS (rows of another lane). Each other macro breaks one thing, and the verifier
   must find it:
     NO_POSITION        the next writer believes `drained` alone
     PUBLISH_FIRST      the position is stored behind the publishing
     DRAINED_EARLY      `drained` is raised before the publishing
     LANE_FIRST         lane_last is stored before topic_last
     READ_TOPIC_FIRST   and read behind it
     POSITION_RELAXED   the position's stores may arrive in any order
     PUBLISH_RELAXED    the publishing may be seen before the position
     NO_LOOK            the first writer raises `drained` without looking whether it was fenced
     NO_BARRIER         whoever fences does not pass the heavy barrier
     IN_LANE            the position lies in the lane, where every writer stores it
     REACH_COUNTED      nothing is broken: shows that a turn gets known from its position alone
     REACH_VOID         nothing is broken: shows that a turn gets known as not published */

#ifndef ROWS
#define ROWS 3
#endif
#ifndef BATCH
#define BATCH 2
#endif
#ifndef OTHERS
#define OTHERS 1
#endif

#define FENCED     0                                       /* the first writer's ring, and its position of the lane */
#define PUBLISHED  1
#define TOPIC_LAST 2
#define LANE_LAST  3
#define DRAINED    4
#define LOCATIONS  5
#define BUFFER     6
#define LENGTH     (ROWS + OTHERS + 1)                     /* of a topic, and what a ring has room for */
#include "store_buffer.pml"

byte first_ring[LENGTH], second_ring[LENGTH];              /* by sequence: the lane's row, 0 for another lane's */
byte ended;                                                /* of the first ring */
bool second_open;
byte published, topic_last, lane_last, drained;            /* the second writer's: one that is killed has stored all before that */
bool second_done;
byte others = OTHERS;

#ifdef POSITION_RELAXED
#define store_position store
#else
#define store_position store_release
#endif

/* The first writer's turn, up to lane row `row` and topic sequence `at`. */
inline store_turn() {
#ifdef LANE_FIRST
  store_position(LANE_LAST, row);
  store_position(TOPIC_LAST, at)
#else
  store_position(TOPIC_LAST, at);                          /* sync TURN: in this order, and both before the publishing */
  store_position(LANE_LAST, row)
#endif
}

inline publish_turn() {
#ifdef PUBLISH_RELAXED
  store(PUBLISHED, at)
#else
  store_release(PUBLISHED, at)                             /* sync PUBLISH */
#endif
}

active proctype First() {
  byte at, row, count;
  {
    do
    :: memory[FENCED] == 0 && row < ROWS && at + 1 < LENGTH ->
       if
       :: others > 0 -> others--; count = 0
       :: count = 1
       :: BATCH > 1 && row + 1 < ROWS && at + 2 < LENGTH -> count = 2
       fi;
       d_step {                                            /* the copy; what a row is once it can be seen is ring.pml's */
         if
         :: count == 0 -> at++; first_ring[at] = 0
         :: count >= 1 -> at++; row++; first_ring[at] = row
         fi;
         if
         :: count == 2 -> at++; row++; first_ring[at] = row
         :: else
         fi
       }
       if
       :: count == 0 -> publish_turn()                     /* another lane's position is none of this one's */
       :: else ->
#ifdef PUBLISH_FIRST
          publish_turn(); store_turn();
#else
          store_turn();
#ifdef DRAINED_EARLY
          store_release(DRAINED, row);
#endif
          publish_turn();
#endif
          skip
       fi;
#ifndef NO_LOOK
       if
       :: memory[FENCED] != 0 -> break                     /* sync FENCE: behind the publishing, by a compiler barrier */
       :: else
       fi;
#endif
       if
       :: count > 0 -> store_release(DRAINED, row)
       :: else
       fi
    :: else -> break
    od
  } unless { killed }
}

active proctype Killer() {
  if
  :: killed = true
  :: skip                                                  /* it is taken over alive */
  fi
}

/* Ends the first ring. */
inline settle() {
  memory[FENCED] = 1;
#ifndef NO_BARRIER
  barrier_writer();                                        /* sync FENCE: the heavy barrier */
#endif
  ended = memory[PUBLISHED]
}

/* How far the lane is drained, by its position in the first ring. */
inline find_first(position) {
#ifdef READ_TOPIC_FIRST
  read_topic = memory[TOPIC_LAST];                         /* sync TURN */
  read_lane = memory[LANE_LAST];
#else
  read_lane = memory[LANE_LAST];                           /* sync TURN: lane_last first, drained last */
  read_topic = memory[TOPIC_LAST];
#endif
  read_drained = memory[DRAINED];
#ifdef NO_POSITION
  position = read_drained;
#else
  if
  :: read_topic <= ended && read_lane > read_drained ->
     position = read_lane
#ifdef REACH_COUNTED
     ; assert(false)
#endif
  :: else ->
     position = read_drained
#ifdef REACH_VOID
     ; assert(read_topic <= ended)
#endif
  fi;
#endif
  read_lane = 0; read_topic = 0; read_drained = 0
}

#ifdef IN_LANE
#define STORE_SECOND(where, mine, value) memory[where] = value
#else
#define STORE_SECOND(where, mine, value) mine = value
#endif

active proctype Second() {
  byte position, at, read_lane, read_topic, read_drained;
  settle();
  find_first(position);
  if
  :: second_done = true                                    /* killed before its ring is open: nobody sees it */
  :: skip
     d_step { drained = position; lane_last = position; topic_last = 0; published = ended; at = ended; second_open = true }
     do
     :: position < ROWS && at + 1 < LENGTH ->
        if
        :: others > 0 -> others--; at++; second_ring[at] = 0; published = at
        :: position++; at++;
           second_ring[at] = position;
           STORE_SECOND(TOPIC_LAST, topic_last, at);
           STORE_SECOND(LANE_LAST, lane_last, position);
           published = at;
           STORE_SECOND(DRAINED, drained, position)
        fi
     :: break                                              /* killed, between any two turns … */
     od unless { second_done };
     second_done = true
  fi
}

active proctype Death() {
end:
  second_open && second_done == false -> second_done = true   /* … or at any step */
}

active proctype Third() {
  byte position, at, expected, read_lane, read_topic, read_drained;
  second_done;
  if
  :: second_open ->
#ifdef IN_LANE
     read_lane = memory[LANE_LAST]; read_topic = memory[TOPIC_LAST]; read_drained = memory[DRAINED];
     position = (read_topic <= published && read_lane > read_drained -> read_lane : read_drained)
#else
     position = (topic_last <= published && lane_last > drained -> lane_last : drained)
#endif
  :: else -> find_first(position); published = ended    /* the end was settled, and stays */
  fi;
  d_step {                                                 /* the topic, from its beginning on */
    expected = 1;
    at = 1;
    do
    :: at <= published ->
       if
       :: at <= ended && first_ring[at] != 0 -> assert(first_ring[at] == expected); expected++
       :: at > ended && second_ring[at] != 0 -> assert(second_ring[at] == expected); expected++
       :: else
       fi;
       at++
    :: else -> break
    od;
    assert(position + 1 == expected)                       /* the rest follows without a gap or a repeat */
  }
}
