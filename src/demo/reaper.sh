# Ends a process and removes its folder when the owner exits.
#
# Reads commands, one per line, from a pipe held by the owner, and responds to each with one line.
# When the pipe closes, however the owner died, it ends the process and removes the folder.
#
# $1: folder, created and removed here; $2: signal that requests the shutdown of the process;
# $3: commands to run after the process has exited, before the folder is removed.
folder=$1 farewell=$2 epilogue=$3
process=

umask 022
if ! why=$(mkdir -m 711 -- "$folder" 2>&1); then
    echo "$why"
    exit 1
fi
cd "$folder" || exit 1
# Only the owner reads the log; the processes inherit it.
(umask 077 && : >"$folder/log")
exec 2>>"$folder/log"

# Child processes reset a caught signal to its default, but inherit an ignored one.
trap : PIPE
trap 'exit 1' HUP INT TERM
trap finish EXIT

# Lists the children of the process: a signal to a server does not reach its worker processes.
children() {
    for stat in /proc/[0-9]*/stat; do
        read -r pid rest 2>/dev/null <"$stat" || continue
        rest=${rest##*) }
        rest=${rest#* }
        [ "${rest%% *}" != "$process" ] || echo "$pid"
    done
}

# run COMMAND...: runs it to completion; responds with its exit status.
run() {
    "$@" </dev/null >>"$folder/log" 2>&1
    echo "$?"
}

# serve COMMAND...: starts the process; responds with its process ID.
serve() {
    end_process
    "$@" </dev/null >>"$folder/log" 2>&1 &
    process=$!
    echo "$process"
}

# send SIGNAL: signals the process and its children; responds with 0 if there was one.
send() {
    [ -n "$process" ] || { echo 1; return; }
    case $1 in
        # Stopped first, so that it cannot fork between listing and signalling its children.
        STOP | KILL) kill -s STOP "$process" ;;
    esac
    kill -s "$1" "$process" $(children)
    sent=$?
    [ "$1" != KILL ] || forget
    echo "$sent"
}

# end: shuts the process down; responds with 0 once it has exited.
end() {
    end_process
    echo 0
}

end_process() {
    [ -n "$process" ] || return 0
    family=$(children)
    kill -s "$farewell" "$process"
    kill -s CONT "$process" $family
    rounds=0
    while kill -s 0 "$process" && [ "$rounds" -lt 150 ]; do
        sleep 0.02
        rounds=$((rounds + 1))
    done 2>/dev/null
    kill -s KILL "$process" $family
    forget
}

forget() {
    wait "$process"
    process=
}

finish() {
    trap '' HUP INT TERM
    end_process
    eval "$epilogue"
    cd /
    # A grandchild may still write a file while the folder is removed.
    rm -rf -- "$folder" || { sleep 0.2; rm -rf -- "$folder"; }
}

echo ready
while IFS= read -r order; do
    eval "$order"
done
