// A page without scripts of its own.

import { startShell } from "./shell.js";

startShell({});
