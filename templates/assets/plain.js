// A page that does nothing of its own.

import { startShell } from "./shell.js";

startShell({});
