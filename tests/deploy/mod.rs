//! What the monitor is installed with, tried as far as one machine can: the image's last stage in an empty
//! root folder, the chart by Helm and Kubernetes' own schemas.

mod chart;
mod image;
