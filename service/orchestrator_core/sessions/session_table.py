"""Sessions: short-lived, bounded in turns and budgets, sticky to the replica that holds their KV.

On a task's path: asked at admission, charged when admitted, settled when the task ends. The
invariants: a refused task changes nothing; what is reserved for a task is released exactly once;
a session ends its TTL after it was created, however busy it is. Requirements: ORCH-3009,
ORCH-3015, ORCH-3021, ORCH-3099, OC-CORE-1013, OC-CORE-1021, OC-CORE-1023.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush

from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.limits import Limits
from orchestrator_core.replicas import Replica
from orchestrator_core.value import Value


class SessionView(Value, frozen=True):
    """What `GET /v1/sessions/{id}` reports; a remaining budget is None where none is set."""

    created_ms: int
    ttl_ms_remaining: int
    turns: int
    kv_bytes: int
    kv_warmth: bool
    last_replica: str | None
    tokens_budget_remaining: int | None
    time_budget_remaining_ms: int | None
    cost_budget_remaining: float | None


class Turn(Value, frozen=True):
    """The place of a task in its session, as it is when the task has just been admitted."""

    session_created_ms: int
    session_until_ms: int
    number: int  # from 1


class Reservation(Value, frozen=True):
    """What one task holds of its session's budgets until it ends."""

    tokens: int
    time_ms: int


class Session:
    """Mutable state of one session; tasks refer to it, so a forgotten one may still be settled."""

    __slots__ = (
        "created_ms",
        "key",
        "kv_bytes",
        "kv_warm",
        "replica",
        "replica_epoch",
        "time_reserved_ms",
        "time_used_ms",
        "tokens_reserved",
        "tokens_used",
        "turns",
    )

    def __init__(self, key: str, created_ms: int) -> None:
        self.key = key
        self.created_ms = created_ms
        self.turns = 0
        self.kv_bytes = 0
        self.kv_warm = False
        self.replica: Replica | None = None
        self.replica_epoch = 0
        self.tokens_used = self.tokens_reserved = 0
        self.time_used_ms = self.time_reserved_ms = 0

    def preferred(self) -> Replica | None:
        """The last good replica, as long as it has not been lost since (its KV would be gone)."""
        replica = self.replica
        if replica is None or not replica.ready or replica.epoch != self.replica_epoch:
            return None
        return replica

    def stay_on(self, replica: Replica, kv_bytes: int, kv_warm: bool) -> None:
        """A task of this session finished well there; its KV pushes out the oldest."""
        if self.replica is not None and self.replica is not replica:
            self.replica.kv.drop(self.key)
        self.replica, self.replica_epoch = replica, replica.epoch
        self.kv_bytes, self.kv_warm = kv_bytes, kv_warm
        replica.kv.hold(self, kv_bytes)

    def lose_kv(self) -> None:
        """Its replica died, or needed the room: whatever comes next starts cold (ORCH-3009)."""
        if self.replica is not None:
            self.replica.kv.drop(self.key)
        self.replica = None
        self.kv_bytes, self.kv_warm = 0, False

    def reserve(self, reservation: Reservation) -> None:
        """Hold budget for a task that was admitted."""
        self.tokens_reserved += reservation.tokens
        self.time_reserved_ms += reservation.time_ms

    def settle(self, reservation: Reservation, tokens_used: int, time_used_ms: int) -> None:
        """The task has ended: what it really used replaces what was held for it."""
        self.tokens_reserved -= reservation.tokens
        self.time_reserved_ms -= reservation.time_ms
        self.tokens_used += tokens_used
        self.time_used_ms += time_used_ms


class SessionTable:
    """Sessions by key, at most `limits.max_sessions`; beyond that the least recently used goes."""

    def __init__(self, limits: Limits) -> None:
        self.reconfigure(limits)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._births: list[
            tuple[int, str]
        ] = []  # heap; entries of sessions that are gone are stale

    def __len__(self) -> int:
        return len(self._sessions)

    def reconfigure(self, limits: Limits) -> None:
        """Other limits from now on; also for sessions that are open."""
        self._limits = limits
        budgets = (limits.budget_tokens, limits.budget_time_ms, limits.budget_cost)
        self._budgeted = any(budget is not None for budget in budgets)

    def find(self, key: str, now_ms: int) -> Session | None:
        """The live session of that key; one past its TTL is not live, forgotten yet or not."""
        session = self._sessions.get(key)
        if session is None or session.created_ms + self._limits.session_ttl_ms <= now_ms:
            return None
        return session

    def refusal(self, key: str, tokens: int, time_ms: int, now_ms: int) -> Refusal | None:
        """Why a task that needs this much may not join the session; None when it may.

        Args:
            tokens: prompt + max_tokens; `time_ms`: expected service time, 0 while unknown.
        """
        session, limits = self.find(key, now_ms), self._limits
        if session is not None and session.turns >= limits.session_max_turns:
            return Refusal(
                Code.ADMISSION_REJECT, Reason.SESSION_TURNS, policy_label="session",
                message="session_id: the session has used all its "
                f"{limits.session_max_turns} turns; open a new one",
            )  # fmt: skip
        if not self._budgeted:
            return None
        view = self.view(session or Session(key, now_ms), now_ms)
        tokens_left, time_left_ms = view.tokens_budget_remaining, view.time_budget_remaining_ms
        cost_left, cost = view.cost_budget_remaining, tokens * limits.cost_per_token
        if tokens_left is not None and tokens > tokens_left:
            short = f"{tokens} tokens (prompt + max_tokens) exceed the {tokens_left} tokens"
        elif time_left_ms is not None and max(time_ms, 1) > time_left_ms:
            short = f"an expected {max(time_ms, 1)} ms exceed the {time_left_ms} ms"
        elif cost_left is not None and cost > cost_left:
            short = f"a cost of {cost:g} exceeds the {cost_left:g}"
        else:
            return None
        return Refusal(
            Code.ADMISSION_REJECT, Reason.BUDGET, policy_label="budget",
            message=f"session_id: {short} left in the session's budget",
        )  # fmt: skip

    def open(self, key: str, now_ms: int) -> tuple[Session, list[str]]:
        """The live session of that key, new if need be; and keys of sessions that went for it."""
        gone = []
        session = self.find(key, now_ms)
        if session is None:
            if key in self._sessions:
                gone.append(key)
            elif len(self._sessions) >= self._limits.max_sessions:
                gone.append(next(iter(self._sessions)))
            for old in gone:
                self._sessions.pop(old).lose_kv()
            session = self._insert(Session(key, now_ms))
        self._sessions.move_to_end(key)
        return session, gone

    def restore(self, session: Session) -> None:
        """A session known from the journal; it replaces what is here under its key."""
        self._insert(session)
        if len(self._sessions) > self._limits.max_sessions:
            self._sessions.popitem(last=False)[1].lose_kv()

    def forget(self, key: str) -> bool:
        """Drop a session at the client's wish; False when there is none."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.lose_kv()
        return session is not None

    def expire(self, now_ms: int) -> list[str]:
        """Forget sessions past their TTL; their keys, oldest first. O(log n) each."""
        gone = []
        while self._births and self._births[0][0] + self._limits.session_ttl_ms <= now_ms:
            created_ms, key = heappop(self._births)
            session = self._sessions.get(key)
            if session is not None and session.created_ms == created_ms:
                self._sessions.pop(key).lose_kv()
                gone.append(key)
        return gone

    def view(self, session: Session, now_ms: int) -> SessionView:
        """What is shown of a session, reservations counted as used."""
        limits = self._limits
        tokens = session.tokens_used + session.tokens_reserved
        time_ms = session.time_used_ms + session.time_reserved_ms
        replica = session.preferred()
        return SessionView(
            created_ms=session.created_ms,
            ttl_ms_remaining=max(session.created_ms + limits.session_ttl_ms - now_ms, 0),
            turns=session.turns,
            kv_bytes=session.kv_bytes if replica is not None else 0,
            kv_warmth=session.kv_warm and replica is not None,
            last_replica=replica.spec.id if replica is not None else None,
            tokens_budget_remaining=_left(limits.budget_tokens, tokens),
            time_budget_remaining_ms=_left(limits.budget_time_ms, time_ms),
            cost_budget_remaining=None
            if limits.budget_cost is None
            else max(limits.budget_cost - tokens * limits.cost_per_token, 0.0),
        )

    def turn(self, session: Session) -> Turn:
        """The latest turn of a session."""
        until_ms = session.created_ms + self._limits.session_ttl_ms
        return Turn(session.created_ms, until_ms, session.turns)

    def _insert(self, session: Session) -> Session:
        self._sessions[session.key] = session
        heappush(self._births, (session.created_ms, session.key))
        if len(self._births) > 2 * len(self._sessions) + 64:
            self._births = [(s.created_ms, s.key) for s in self._sessions.values()]
            heapify(self._births)
        return session


def _left(budget: int | None, used: int) -> int | None:
    return None if budget is None else max(budget - used, 0)
