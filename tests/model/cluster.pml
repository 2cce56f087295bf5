/* Leadership in the log: nodes and one stream with compare-and-append; leaders come and go, and nothing acknowledged is lost.

   1. What was answered as stored is in the stream, in its place, for ever, and in the log of every node that has read so far.
   2. The stream has one order: each record follows the one before it, and none is there twice.
   3. Epochs never go back, and behind a claim there are only messages of who made it: a deposed leader acknowledges nothing.
   4. A node that has read the whole stream, whose last claim is another's, holds just what is in it.

   A message that was sent may arrive at any time, any number of times, also when its sender has crashed or has given it up;
   its answer may be lost. A stream that is told an id again answers with the message's sequence, or refuses, when that is long ago.
   Anybody may claim at any time. A crash takes what is not on the disk, the memory of everything sent, and no more.
   A record is a number. One message holds one record (`record` > 0), or it is a claim. A log holds records 1 to `length`.

   Settings: NODES, LENGTH (messages in the stream), SENT (messages sent), RECORDS, CRASHES. Each other macro breaks one thing,
   and the verifier must find it:
     TWO_IN_FLIGHT        a leader sends its next append before the one before is answered
     CLAIM_ANYWHERE       the stream takes a claim whatever its last message is
     REFUSED_IS_STORED    a refused append is taken for stored, without looking which message is there
     OTHERS_ARE_MINE      who claimed, is refused and looks, takes whatever message is there for its claim
     TAIL_KEPT            what a leader had not in the stream stays in its log when another leads
     NEVER_COMPARED       rows that the log has already are not compared with the stream's
     POSITION_AHEAD       the position is stored before the rows up to it are on the disk
     ID_REUSED            messages are numbered from 1 again by each leadership, without its epoch in their ids
     SAME_EPOCH           a claim does not raise the epoch */

#ifndef NODES
#define NODES 2
#endif
#ifndef LENGTH
#define LENGTH 4
#endif
#ifndef SENT
#define SENT 5
#endif
#ifndef RECORDS
#define RECORDS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#define FOLLOWS 0
#define CLAIMS  1
#define LEADS   2
#define NOBODY  255

typedef Message { byte expected, epoch, node, record, place, id }
Message net[SENT];                       /* every message that was ever sent */
byte sent;

byte stream[LENGTH + 1];                 /* which message, from 1; and what all up to it say: */
byte epoch_at[LENGTH + 1], leader_at[LENGTH + 1], ends_at[LENGTH + 1];
byte last;
byte streamed[RECORDS + 1];              /* the record in each place */

typedef Log { byte record[RECORDS + 1] }
Log log[NODES];
byte length[NODES], durable[NODES], position[NODES];           /* what outlives a crash; of `length` not all */
byte role[NODES], applied[NODES], waiting[NODES], number[NODES];   /* waiting: for the answer to which message, from 1 */
byte published, crashes;

#ifdef CLAIM_ANYWHERE
#define FITS(i)       (net[i].expected == last || net[i].record == 0)
#define MAY_CLAIM(n)  true
#else
#define FITS(i)       (net[i].expected == last)
#define MAY_CLAIM(n)  (applied[n] == last)   /* who has not read all expects what will never be */
#endif

#ifdef SAME_EPOCH
#define NEXT_EPOCH(n) epoch_at[applied[n]]
#else
#define NEXT_EPOCH(n) (epoch_at[applied[n]] + 1)
#endif

#ifdef POSITION_AHEAD
#define ON_DISK(n)    true
#else
#define ON_DISK(n)    (durable[n] >= ENDS(n))
#endif

#ifdef REFUSED_IS_STORED
#define IS_MINE       (role[n] == LEADS)
#else
#ifdef OTHERS_ARE_MINE
#define IS_MINE       (role[n] == CLAIMS)
#else
#define IS_MINE       false
#endif
#endif

#define ENDS(n)    ends_at[applied[n]]
#define IN_STREAM(i) (last > net[i].expected && stream[net[i].expected + 1] == (i) + 1)

/* Message i reaches the stream, which stores it if it fits. */
inline arrive(i) {
  k = 1;
  do                                                       /* known by its id? */
  :: k <= last && net[stream[k] - 1].id != net[i].id -> k++
  :: else -> break
  od;
  if
  :: k <= last                                             /* k: where */
  :: k > last && last < LENGTH && FITS(i) ->
     last++;
     stream[last] = i + 1;
     if
     :: net[i].record == 0 ->
        assert(net[i].epoch > epoch_at[last - 1]);
        epoch_at[last] = net[i].epoch; leader_at[last] = net[i].node; ends_at[last] = ends_at[last - 1]
     :: else ->
        assert(net[i].epoch == epoch_at[last - 1] && net[i].node == leader_at[last - 1]);
        assert(net[i].place == ends_at[last - 1] + 1);
        j = 1;
        do
        :: j < net[i].place -> assert(streamed[j] != net[i].record); j++
        :: else -> break
        od;
        streamed[net[i].place] = net[i].record;
        epoch_at[last] = epoch_at[last - 1]; leader_at[last] = leader_at[last - 1]; ends_at[last] = net[i].place
     fi
  :: else -> k = 0                                         /* refused */
  fi
}

inline send(what, where, expects, rises) {
  net[sent].expected = expects; net[sent].epoch = rises; net[sent].node = n;
  net[sent].record = what; net[sent].place = where;
#ifdef ID_REUSED
  net[sent].id = (what -> 16 * (n + 1) + number[n] : 128 + sent);
#else
  net[sent].id = sent + 1;
#endif
  number[n]++;
  sent++
}

inline cut(to) {
  do
  :: length[n] > (to) -> log[n].record[length[n]] = 0; length[n]--
  :: else -> break
  od;
  durable[n] = (durable[n] > length[n] -> length[n] : durable[n])
}

/* What a node has read is what its log begins with. */
inline check_log() {
  assert(length[n] >= ENDS(n));
  j = 1;
  do
  :: j <= ENDS(n) -> assert(log[n].record[j] == streamed[j]); j++
  :: else -> break
  od;
  j = 0
}

inline set_aside_tail(leader) {
  if
#ifndef TAIL_KEPT
  :: leader != n -> cut(ENDS(n))
#endif
  :: else
  fi
}

inline lead(at) {
  set_aside_tail(leader_at[applied[n]]);
  applied[n] = at; role[n] = LEADS; waiting[n] = 0; number[n] = 0;
  check_log()
}

/* The message waited for is in the stream, and where, says the answer or a look. */
inline stored(at) {
  if
  :: role[n] == CLAIMS -> lead(at)
  :: else ->                                               /* once it is on this disk as well, it is acknowledged */
     i = waiting[n] - 1;
     assert(ends_at[last] >= net[i].place && streamed[net[i].place] == net[i].record);
     applied[n] = at; waiting[n] = 0;
     check_log()
  fi
}

/* It is behind another message, or was stored so long ago that the stream knows its id no more: a look tells. */
inline refused() {
  i = waiting[n] - 1;
  if
  :: IN_STREAM(i) || IS_MINE -> stored(net[i].expected + 1)
  :: else -> role[n] = FOLLOWS; waiting[n] = 0
  fi
}

inline apply(i) {
  if
  :: net[i].record == 0 -> applied[n]++
  :: else ->
#ifndef NEVER_COMPARED
     if
     :: length[n] >= net[i].place && log[n].record[net[i].place] != net[i].record -> cut(net[i].place - 1)
     :: else
     fi;
#endif
     if
     :: length[n] < net[i].place -> length[n]++; log[n].record[length[n]] = net[i].record
     :: else
     fi;
     applied[n]++
  fi;
  check_log()
}

/* It begins with one leader, whose claim everybody has read. */
init {
  byte i;
  atomic {
    net[0].node = 0; net[0].epoch = 1; net[0].id = 1;
    sent = 1; last = 1; stream[1] = 1; epoch_at[1] = 1; leader_at[1] = 0;
    role[0] = LEADS;
    i = 0;
    do
    :: i < NODES -> applied[i] = 1; position[i] = 1; run Node(i); i++
    :: else -> break
    od;
    run Network()
  }
}

proctype Node(byte n) {
  byte i, j, k;
end:
  do
  :: d_step { role[n] != LEADS && applied[n] < last ->       /* read on; it may be its own claim */
     if
     :: waiting[n] && stream[applied[n] + 1] == waiting[n] -> lead(applied[n] + 1)
     :: else -> role[n] = FOLLOWS; waiting[n] = 0; i = stream[applied[n] + 1] - 1; apply(i)
     fi;
     i = 0; j = 0; k = 0 }
  :: d_step { role[n] == FOLLOWS && applied[n] == last && length[n] > ENDS(n) && leader_at[last] != n ->
     set_aside_tail(leader_at[last]);
     assert(length[n] == ENDS(n)) }
  :: d_step { role[n] == FOLLOWS && sent < SENT && MAY_CLAIM(n) ->
     send(0, 0, applied[n], NEXT_EPOCH(n)); role[n] = CLAIMS; waiting[n] = sent }
  :: d_step { role[n] == LEADS && published < RECORDS && length[n] < RECORDS ->
     published++; length[n]++; log[n].record[length[n]] = published }
  :: d_step { role[n] == LEADS && !waiting[n] && length[n] > ENDS(n) && sent < SENT ->
     send(log[n].record[ENDS(n) + 1], ENDS(n) + 1, applied[n], epoch_at[applied[n]]); waiting[n] = sent }
#ifdef TWO_IN_FLIGHT
  :: d_step { role[n] == LEADS && waiting[n] && length[n] > ENDS(n) + 1 && sent < SENT ->
     send(log[n].record[ENDS(n) + 2], ENDS(n) + 2, applied[n] + 1, epoch_at[applied[n]]) }
#endif
  :: d_step { role[n] == LEADS && !waiting[n] && applied[n] < last -> role[n] = FOLLOWS }      /* a beat was refused */
  :: atomic { waiting[n] && (last < LENGTH || net[waiting[n] - 1].expected < last) ->          /* an answer, to this or an earlier try */
     arrive(waiting[n] - 1);
     if
     :: d_step { k > 0 -> stored(k) }
     :: d_step { k == 0 || IN_STREAM(waiting[n] - 1) -> refused() }
     fi;
     i = 0; j = 0; k = 0 }
  :: d_step { durable[n] < length[n] -> durable[n] = length[n] }
  :: d_step { position[n] < applied[n] && ON_DISK(n) -> position[n] = applied[n] }
  :: atomic { crashes < CRASHES ->
     crashes++;
     do
     :: length[n] > durable[n] -> log[n].record[length[n]] = 0; length[n]--
     :: break
     od;
     durable[n] = length[n]; applied[n] = position[n]; role[n] = FOLLOWS; waiting[n] = 0; number[n] = 0;
     check_log() }
  od
}

/* A message arrives, and nobody is told. */
#define ARRIVES(x) d_step { x < sent && last < LENGTH && FITS(x) -> i = x; arrive(i); i = 0; j = 0; k = 0 }

proctype Network() {
  byte i, j, k;
end:
  do
  :: ARRIVES(0)
  :: ARRIVES(1)
  :: ARRIVES(2)
  :: ARRIVES(3)
  :: ARRIVES(4)
#if SENT > 5
  :: ARRIVES(5)
#endif
#if SENT > 6
  :: ARRIVES(6)
#endif
  od
}
