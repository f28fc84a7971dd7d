"""The keys of a project, and what its gateway makes of them."""

from __future__ import annotations

import secrets
import time
import uuid

import jwt

SERVICE = "service"
TEN_YEARS_S = 10 * 365 * 86400.0
"""How long a hosted project's own JWTs hold."""


class ProjectKeys:
    """Made anew for each project. ``jwt_secret`` signs what PostgREST believes."""

    def __init__(self) -> None:
        self.jwt_secret = secrets.token_hex(32)
        self.service_jwt = self.sign("service_role")
        self.anon_jwt = self.sign("anon")
        self.secret = f"sb_secret_{secrets.token_urlsafe(24)}"
        self.publishable = f"sb_publishable_{secrets.token_urlsafe(24)}"
        self.personal_token = f"pat_{secrets.token_urlsafe(24)}"
        """A user's, which only the functions know."""
        self.user_id = str(uuid.uuid4())
        """Whose it is."""
        self._roles = {self.secret: self.service_jwt, self.publishable: self.anon_jwt}

    def sign(self, role: str, *, lives_s: float = TEN_YEARS_S, user_id: str | None = None) -> str:
        """A JWT for ``role``, of a user where one is named; with a negative life one that has expired."""
        now = int(time.time())
        claims = {"iss": "supabase", "ref": "local", "role": role, "iat": now, "exp": now + int(lives_s)}
        if user_id is not None:
            claims["sub"] = user_id
        return jwt.encode(claims, self.jwt_secret, algorithm="HS256")

    def opens_gateway(self, apikey: str) -> bool:
        return apikey in (*self._roles, self.service_jwt, self.anon_jwt)

    def as_jwt(self, token: str) -> str:
        """What stands behind the gateway for an opaque key; anything else as it is."""
        return self._roles.get(token, token)

    def is_service(self, token: str) -> bool:
        return token in (self.secret, self.service_jwt)

    def holder(self, token: str) -> str | None:
        """Whose token it is to the functions: ``"service"``, a user's id, or None for nobody's."""
        if self.is_service(token):
            return SERVICE
        return self.user_id if token == self.personal_token else None
