// An OpenID Connect provider for the tests: oidc-provider with three accounts and a login form without passwords.
//
//   node provider.js PORT REDIRECT_URL CLAIMS
//
// CLAIMS is where groups are sent: "id_token", or "userinfo" only. Runs on 127.0.0.1; its issuer is
// http://localhost:PORT, another site than 127.0.0.1 for browsers.

import { createServer } from "node:http";

import Provider from "oidc-provider";

const [port, redirectUrl, claims] = process.argv.slice(2);
const issuer = `http://localhost:${port}`;
const groups = { ann: ["staff", "sre"], vic: ["staff"], eve: [] };

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "monitor",
      client_secret: "of-the-monitor",
      redirect_uris: [redirectUrl],
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  claims: { openid: ["sub"], email: ["email", "email_verified"], groups: ["groups"] },
  scopes: ["openid", "email", "groups"],
  conformIdTokenClaims: claims === "userinfo",
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.org`, email_verified: true, groups: groups[id] ?? [] }),
  }),
  // No page that asks for consent.
  loadExistingGrant: async (context) => {
    const grant = new context.oidc.provider.Grant({
      clientId: context.oidc.client.clientId,
      accountId: context.oidc.session.accountId,
    });
    grant.addOIDCScope("openid email groups");
    await grant.save();
    return grant;
  },
});

const server = createServer(async (request, response) => {
  const url = new URL(request.url, issuer);
  if (!url.pathname.startsWith("/interaction/")) {
    provider.callback()(request, response);
    return;
  }
  // The form is submitted to the same address with the account.
  const accountId = url.searchParams.get("account");
  if (accountId === "refuse") {
    const result = { error: "access_denied", error_description: "not <today>" };
    await provider.interactionFinished(request, response, result);
  } else if (accountId) {
    await provider.interactionFinished(request, response, { login: { accountId } });
  } else {
    response.setHeader("content-type", "text/html");
    response.end('<!doctype html><title>Provider</title><form><input name="account" autofocus><button>Go</button></form>');
  }
});
server.listen(Number(port), "127.0.0.1");
