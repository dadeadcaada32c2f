"""Sources that change at random, and the documents that are built of them.

Two tables with a foreign key and a document kind; over them a relational kind, two derived
kinds, and one that is derived from a derived one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, TypeAlias

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    # Kind, id and document, None to delete it.
    Mutation: TypeAlias = "tuple[str, str, dict[str, Any] | None]"

NOTES = [f"n{n}" for n in range(60)]
AUTHORS = [f"a{n}" for n in range(80)]
PEOPLE = [f"p{n:02}" for n in range(60)]
TEAMS = [f"t{n}" for n in range(12)]
SIZES = [str(n) for n in range(len(PEOPLE) + 1)]

TABLES = """
CREATE TABLE public.team (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE public.person (
    id text PRIMARY KEY,
    team text NOT NULL CONSTRAINT person_has_a_team REFERENCES public.team,
    name text NOT NULL
);
"""
KINDS = """
[fan_out]
poll = "50ms"
[kinds.note]
[kinds.person]
save_sql = "person_save.sql"
delete_sql = "person_delete.sql"
read_model = "person.sql"
depends_on = [{ table = "public.person", fields = ["id"], ids = "ids.sql" }]
[kinds.author]
read_model = "author.sql"
depends_on = [{ kind = "note", fields = ["author"], ids = "ids_of_note.sql" }]
[kinds.team]
read_model = "team.sql"
depends_on = [
    { table = "public.team", fields = ["id"], ids = "ids.sql" },
    { table = "public.person", fields = ["team"], ids = "ids_of_person.sql" },
]
[kinds.size]
read_model = "size.sql"
depends_on = [{ kind = "team", fields = ["members"], ids = "ids_of_team.sql" }]
"""
READ_MODELS = {
    "person": "SELECT team, name FROM public.person WHERE id = :id",
    "author": """
        SELECT
            count(*) AS notes,
            sum((data ->> 'n')::int) AS total,
            jsonb_agg(id ORDER BY id) AS ids
        FROM duostore.entity
        WHERE tenant = '' AND kind = 'note' AND NOT deleted AND data ->> 'author' = :id
        HAVING count(*) > 0
    """,
    "team": """
        SELECT name, members, names
        FROM public.team, LATERAL (
            SELECT count(*) AS members, jsonb_agg(p.name ORDER BY p.id) AS names
            FROM public.person AS p
            WHERE p.team = :id
        ) AS of_team
        WHERE id = :id
    """,
    "size": """
        SELECT jsonb_agg(id ORDER BY id) AS teams
        FROM duostore.entity
        WHERE tenant = '' AND kind = 'team' AND NOT deleted AND data ->> 'members' = :id
        HAVING count(*) > 0
    """,
}
SQL = {
    **{f"{kind}.sql": text for kind, text in READ_MODELS.items()},
    "person_save.sql": """
        INSERT INTO public.person (id, team, name) VALUES (:id, :data ->> 'team', :data ->> 'name')
        ON CONFLICT (id) DO UPDATE SET team = excluded.team, name = excluded.name
    """,
    "person_delete.sql": "DELETE FROM public.person WHERE id = :id",
    "ids.sql": "SELECT :id AS id",
    "ids_of_note.sql": "SELECT :author AS id WHERE :author IS NOT NULL",
    "ids_of_person.sql": "SELECT :team AS id",
    "ids_of_team.sql": "SELECT :members AS id WHERE :members IS NOT NULL",
}
IDS = {"person": PEOPLE, "author": AUTHORS, "team": TEAMS, "size": SIZES}

# Of the transactions of another program; the rest are rolled back.
_COMMITTED = 0.95


@dataclass(frozen=True)
class Entities:
    """Saves and deletes (with no document) of entities, together if they are several."""

    changes: Sequence[Mutation]


@dataclass(frozen=True)
class Rows:
    """Statements of another program, in one transaction."""

    statements: Sequence[tuple[LiteralString, Sequence[Any]]]
    commits: bool = True


@dataclass(frozen=True)
class Step:
    """A change of sources, and a document that somebody reads after it."""

    change: Entities | Rows
    read: tuple[str, str]


def steps(rng: random.Random, count: int) -> list[Step]:
    """Return so many changes: the same ones for the same seed."""
    moves = _Moves(rng)
    made = [
        Step(moves.any(), (kind, rng.choice(IDS[kind]))) for kind in rng.choices([*IDS], k=count)
    ]
    # Once, all at once: whatever documents there are may have changed.
    made[count // 3] = Step(Rows([("TRUNCATE public.person", ())]), ("team", TEAMS[0]))
    return made


class _Moves:
    """Changes that may be made; each call draws another one."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weights: dict[Callable[[], Entities | Rows], int] = {
            self._note: 28,
            self._no_note: 6,
            self._person: 14,
            self._no_person: 5,
            self._together: 10,
            self._person_rows: 14,
            self._team_row: 10,
            self._many_rows: 7,
            self._no_rows: 6,
        }

    def any(self) -> Entities | Rows:
        """Return a change."""
        (move,) = self._rng.choices([*self._weights], [*self._weights.values()])
        return move()

    def _note(self) -> Entities:
        author, n = self._rng.choice(AUTHORS), self._rng.randrange(100)
        return Entities([("note", self._rng.choice(NOTES), {"author": author, "n": n})])

    def _no_note(self) -> Entities:
        return Entities([("note", self._rng.choice(NOTES), None)])

    def _person(self) -> Entities:
        document = {"team": self._rng.choice(TEAMS), "name": self._name()}
        return Entities([("person", self._rng.choice(PEOPLE), document)])

    def _no_person(self) -> Entities:
        return Entities([("person", self._rng.choice(PEOPLE), None)])

    def _together(self) -> Entities:
        several = [self._note() for _ in range(self._rng.randint(1, 3))] + [self._person()]
        by_key = {change[:2]: change for each in several for change in each.changes}
        return Entities(list(by_key.values()))

    def _person_rows(self) -> Rows:
        statement = (
            "INSERT INTO public.person VALUES (%s, %s, %s)"
            " ON CONFLICT (id) DO UPDATE SET team = excluded.team, name = excluded.name"
        )
        chosen = sorted(self._rng.sample(PEOPLE, self._rng.choice([1, 1, 1, 4])))
        values = [(id_, self._rng.choice(TEAMS), self._name()) for id_ in chosen]
        return Rows([(statement, each) for each in values], commits=self._rng.random() < _COMMITTED)

    def _team_row(self) -> Rows:
        statement = (
            "INSERT INTO public.team VALUES (%s, %s)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name"
        )
        return Rows([(statement, (self._rng.choice(TEAMS), self._name()))])

    def _many_rows(self) -> Rows:
        """Change several rows by one statement; some that it looks at stay as they are."""
        team, other = self._rng.sample(TEAMS, 2)
        added = "INSERT INTO public.person SELECT unnest(%s::text[]), %s, %s ON CONFLICT DO NOTHING"
        return self._one_of(
            [("UPDATE public.person SET team = %s WHERE team = %s", (other, team))],
            [
                (
                    "UPDATE public.person SET name = name || '+' WHERE id > %s",
                    (self._rng.choice(PEOPLE),),
                )
            ],
            [(added, (self._rng.sample(PEOPLE, 5), team, self._name()))],
        )

    def _no_rows(self) -> Rows:
        all_of_team = ("DELETE FROM public.person WHERE team = %s", (self._rng.choice(TEAMS),))
        return self._one_of(
            [("DELETE FROM public.person WHERE id = %s", (self._rng.choice(PEOPLE),))],
            [all_of_team],
            [all_of_team, ("DELETE FROM public.team WHERE id = %s", all_of_team[1])],
        )

    def _one_of(self, *choices: Sequence[tuple[LiteralString, Sequence[Any]]]) -> Rows:
        return Rows(self._rng.choice(choices))

    def _name(self) -> str:
        return f"name {self._rng.randrange(1000)}"
