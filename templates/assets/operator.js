// Messages, previews and the recycle bin, rendered by the server; adds theme, keyboard shortcuts and local time.

import { startShell } from "./shell.js";
import { wordTimes } from "./clock.js";

startShell({ r: () => location.reload() });
wordTimes(document.body);
